"""Photos that are the same, or nearly: by content, and by perceptual hash."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pets_core.data.dataset import DUPLICATES_SCHEMA

__all__ = [
    "SPLIT_ORDER",
    "find_duplicates",
    "leaking",
    "near_pairs",
    "perceptual_hashes",
    "without_leaking",
]

_BANDS = 4
_MAX_PAIRS = 1 << 22
"""Compared at once."""
_CROWD = 512
"""Of more hashes than that with a band in common, each is compared with the first so many."""
_NOBODY = np.iinfo(np.int64).max
SPLIT_ORDER = {"train": 0, "valid": 1, "test": 2}
"""A photo leaks when its like is in a later split, on which the model will be judged."""


def perceptual_hashes(thumbnails: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """Hash the 8 x 8 lowest frequencies of each picture: which are above their median?

    Photos that differ by scaling, compression or little more differ in few bits. The method is
    pHash (Zauner 2010), bit for bit that of the library ImageHash, but that equal frequencies count
    as equal: in a flat or mirrored picture, errors of rounding would else choose the bits.

    Args:
        thumbnails: Grey, shape (n, 32, 32).

    Returns:
        64 bits each, shape (n,).
    """
    basis = _cosines()
    low = np.round(basis @ thumbnails.astype(np.float64) @ basis.T, 6)
    above = low > np.median(low, axis=(1, 2), keepdims=True)
    return np.packbits(above.reshape(len(above), 64), axis=1).view(">u8").ravel().astype(np.uint64)


def near_pairs(
    hashes: npt.NDArray[np.uint64], bits: int
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Find the pairs of hashes that differ in at most `bits` bits.

    Two such hashes differ in at most a quarter of these bits in one of their four bands of 16, so
    only hashes that come so near in a band are compared (multi-index hashing: Norouzi, Punjani,
    Fleet 2012). A pair may come more than once. Of a crowd, hashes of which more than `_CROWD` have
    a band in common, each is compared with the first of these only: time is linear in its size.

    Args:
        hashes: In the order of their weight, shape (n,).
        bits: Largest distance.

    Yields:
        Places of the first and of the second of some pairs, first below second.
    """
    near = range(bits // _BANDS + 1)
    masks = [sum(1 << p for p in places) for n in near for places in combinations(range(16), n)]
    for number in range(_BANDS):
        band = (hashes >> np.uint64(16 * number)).astype(np.uint16)
        order = np.argsort(band, kind="stable")
        starts = np.searchsorted(band[order], np.arange((1 << 16) + 1))
        for mask in masks:
            wanted = (band ^ np.uint16(mask)).astype(np.int64)
            low, counts = starts[wanted], np.diff(starts)[wanted].clip(max=_CROWD)
            for rows in _chunks(counts):
                second = np.repeat(rows, counts[rows])
                ends = np.cumsum(counts[rows])
                place = np.arange(len(second)) + np.repeat(
                    low[rows] - ends + counts[rows], counts[rows]
                )
                first = order[place]
                alike = first < second
                alike &= np.bitwise_count(hashes[first] ^ hashes[second]) <= bits
                if alike.any():
                    yield first[alike], second[alike]


def _chunks(counts: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
    """Rows whose counts add up to what fits in memory at once, and one row at least."""
    chunk = np.cumsum(counts) // _MAX_PAIRS
    return iter(np.split(np.arange(len(counts)), np.flatnonzero(np.diff(chunk)) + 1))


def find_duplicates(photos: pa.Table, bits: int) -> pa.Table:
    """List the photos of a data set that are (nearly) another one.

    Args:
        photos: Columns id, split, class_name, sha256, phash.
        bits: Perceptual hashes that differ in at most so many bits are near.

    Returns:
        By `DUPLICATES_SCHEMA`, sorted by id. A photo is listed with its like in a later split, and
        where there is none, with its like in its own split, of which the first by id is taken for
        the original and not listed.
    """
    own = sorted(
        _Photo(*row) for row in zip(*(photos[n].to_pylist() for n in _COLUMNS), strict=True)
    )
    by_bytes, by_hash = _firsts(own, "sha256"), _firsts(own, "phash")
    nearest = _nearest((first for firsts in by_hash.values() for first in firsts), bits)
    rows = []
    for photo in own:
        alike = [*by_bytes[photo.sha256], *by_hash[photo.phash]]
        alike += nearest.get((photo.phash, photo.split), ())
        matches = [
            m for m in alike if _is_later(photo, m) or (photo.split == m.split and m < photo)
        ]
        if matches:
            match = min(matches, key=lambda m: (not _is_later(photo, m), *_difference(photo, m), m))
            distance, differs = _difference(photo, match)
            rows.append((*photo[:3], *match[:3], distance, not differs))
    columns = list(zip(*rows, strict=True)) or [()] * len(DUPLICATES_SCHEMA)
    arrays = [pa.array(c, f.type) for c, f in zip(columns, DUPLICATES_SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=DUPLICATES_SCHEMA)


def leaking(duplicates: pa.Table) -> pa.Table:
    """The rows whose like is in a later split."""
    splits = zip(
        duplicates["split"].to_pylist(), duplicates["match_split"].to_pylist(), strict=True
    )
    return duplicates.filter(
        pa.array([SPLIT_ORDER[own] < SPLIT_ORDER[other] for own, other in splits], pa.bool_())
    )


def without_leaking(duplicates: pa.Table, left: pa.Table, bits: int) -> pa.Table:
    """What `find_duplicates` says of the photos that are left when those that leak are dropped.

    It need not search again, but where a photo was listed with one that is gone.
    """
    kept = duplicates.filter(pc.is_in(duplicates["id"], left["id"].combine_chunks()))
    if pc.all(pc.is_in(kept["match_id"], left["id"].combine_chunks()), min_count=0).as_py():
        return kept
    return find_duplicates(left, bits)


class _Photo(NamedTuple):
    id: str
    split: str
    class_name: str
    sha256: str
    phash: int


_COLUMNS = _Photo._fields


def _firsts(photos: Iterable[_Photo], key: str) -> dict[Any, list[_Photo]]:
    """The first photo of each split, by hash; enough to tell who is alike."""
    firsts: dict[Any, dict[str, _Photo]] = defaultdict(dict)
    for photo in photos:
        firsts[getattr(photo, key)].setdefault(photo.split, photo)
    return {value: list(of.values()) for value, of in firsts.items()}


def _nearest(photos: Iterable[_Photo], bits: int) -> dict[tuple[int, str], tuple[_Photo]]:
    """The near photo that weighs most, by hash and split.

    Args:
        photos: The first of each split and hash. Of any other, the first is the nearest in its own
            split, and a near one of a later split is the first's too.
        bits: Largest distance.
    """
    by_id = sorted(photos)
    # Likes come first: photos of later splits, and of a split those whose id comes first.
    order = sorted(range(len(by_id)), key=lambda place: -SPLIT_ORDER[by_id[place].split])
    places = np.array(order, np.int64)
    splits = np.array([SPLIT_ORDER[by_id[place].split] for place in order], np.int64)
    hashes = np.array([by_id[place].phash for place in order], np.uint64)
    # One number a photo, as all pairs of a crowd would not fit in memory.
    best = np.full(len(order), _NOBODY)
    for first, second in near_pairs(hashes, bits):
        distance = np.bitwise_count(hashes[first] ^ hashes[second]).astype(np.int64)
        same_split = (splits[first] == splits[second]).astype(np.int64)
        np.minimum.at(best, second, same_split << 48 | distance << 40 | places[first])
    return {
        (by_id[own].phash, by_id[own].split): (by_id[like & (1 << 40) - 1],)
        for own, like in zip(order, best.tolist(), strict=True)
        if like != _NOBODY
    }


def _is_later(photo: _Photo, match: _Photo) -> bool:
    return SPLIT_ORDER[photo.split] < SPLIT_ORDER[match.split]


def _difference(photo: _Photo, match: _Photo) -> tuple[int, bool]:
    return (photo.phash ^ match.phash).bit_count(), photo.sha256 != match.sha256


@cache
def _cosines() -> npt.NDArray[np.float64]:
    """The first 8 rows of the 32-point DCT-II, shape (8, 32)."""
    place, frequency = np.arange(32), np.arange(8)[:, None]
    return np.cos(np.pi * frequency * (2 * place + 1) / 64)
