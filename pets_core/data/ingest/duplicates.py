"""Find duplicate photos by content, and near-duplicates by perceptual hash."""

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
    "drop_leaking",
    "find_duplicates",
    "leaking",
    "near_pairs",
    "perceptual_hashes",
]

_BANDS = 4
_MAX_PAIRS = 1 << 22
"""Pairs compared at once; bounds memory."""
_MAX_CANDIDATES = 512
"""If more hashes share a band, each is compared only with the first `_MAX_CANDIDATES` of them."""
_NO_MATCH = np.iinfo(np.int64).max
SPLIT_ORDER = {"train": 0, "valid": 1, "test": 2}
"""A photo leaks if its duplicate is in a later split, on which the model is evaluated."""


def perceptual_hashes(thumbnails: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """Return the perceptual hash (pHash, Zauner 2010) of each thumbnail.

    Each bit states whether one of the 8 x 8 lowest DCT coefficients is above their median. Photos
    that differ by scaling or compression differ in few bits. Hashes equal those of the library
    ImageHash, except that coefficients are rounded first: in a flat or mirrored picture, rounding
    errors would otherwise determine bits.

    Args:
        thumbnails: Grey, uint8, shape (n, 32, 32).

    Returns:
        64-bit hashes, uint64, shape (n,).
    """
    basis = _cosines()
    low = np.round(basis @ thumbnails.astype(np.float64) @ basis.T, 6)
    above = low > np.median(low, axis=(1, 2), keepdims=True)
    return np.packbits(above.reshape(len(above), 64), axis=1).view(">u8").ravel().astype(np.uint64)


def near_pairs(
    hashes: npt.NDArray[np.uint64], bits: int
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Find pairs of hashes that differ in at most `bits` bits.

    Multi-index hashing (Norouzi, Punjani, Fleet 2012): two such hashes differ in at most a quarter
    of `bits` in one of their four 16-bit bands, so only hashes that match that closely in a band
    are compared. A pair may be yielded more than once. If more than `_MAX_CANDIDATES` hashes share
    a band, each is compared only with the first of them, which keeps time linear in their number.

    Args:
        hashes: Sorted by priority, shape (n,).
        bits: Maximum Hamming distance.

    Yields:
        Indices of the first and second hashes of some pairs; first < second.
    """
    near = range(bits // _BANDS + 1)
    masks = [sum(1 << b for b in flipped) for n in near for flipped in combinations(range(16), n)]
    for number in range(_BANDS):
        band = (hashes >> np.uint64(16 * number)).astype(np.uint16)
        order = np.argsort(band, kind="stable")
        starts = np.searchsorted(band[order], np.arange((1 << 16) + 1))
        for mask in masks:
            wanted = (band ^ np.uint16(mask)).astype(np.int64)
            low, counts = starts[wanted], np.diff(starts)[wanted].clip(max=_MAX_CANDIDATES)
            for rows in _chunks(counts):
                second = np.repeat(rows, counts[rows])
                ends = np.cumsum(counts[rows])
                position = np.arange(len(second)) + np.repeat(
                    low[rows] - ends + counts[rows], counts[rows]
                )
                first = order[position]
                alike = first < second
                alike &= np.bitwise_count(hashes[first] ^ hashes[second]) <= bits
                if alike.any():
                    yield first[alike], second[alike]


def _chunks(counts: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
    """Split rows into chunks of at most about `_MAX_PAIRS` pairs, and at least one row."""
    chunk = np.cumsum(counts) // _MAX_PAIRS
    return iter(np.split(np.arange(len(counts)), np.flatnonzero(np.diff(chunk)) + 1))


def find_duplicates(photos: pa.Table, bits: int) -> pa.Table:
    """Find the photos of a data set that have a duplicate or near-duplicate.

    Args:
        photos: Columns id, split, target_text, sha256, phash.
        bits: Maximum Hamming distance between perceptual hashes of near-duplicates.

    Returns:
        Table with `DUPLICATES_SCHEMA`, sorted by id. Each photo is listed with its match in a later
        split if there is one, else with its match in the same split. There, the first photo by id
        counts as the original and is not listed.
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
    """Return the rows whose match is in a later split."""
    splits = zip(
        duplicates["split"].to_pylist(), duplicates["match_split"].to_pylist(), strict=True
    )
    return duplicates.filter(
        pa.array([SPLIT_ORDER[own] < SPLIT_ORDER[other] for own, other in splits], pa.bool_())
    )


def drop_leaking(duplicates: pa.Table, rest: pa.Table, bits: int) -> pa.Table:
    """Return the duplicates among the photos that remain after leaking ones are dropped.

    Equals `find_duplicates(rest, bits)`, but searches only if a listed match was dropped.
    """
    kept = duplicates.filter(pc.is_in(duplicates["id"], rest["id"].combine_chunks()))
    if pc.all(pc.is_in(kept["match_id"], rest["id"].combine_chunks()), min_count=0).as_py():
        return kept
    return find_duplicates(rest, bits)


class _Photo(NamedTuple):
    id: str
    split: str
    target_text: str
    sha256: str
    phash: int


_COLUMNS = _Photo._fields


def _firsts(photos: Iterable[_Photo], key: str) -> dict[Any, list[_Photo]]:
    """Return the first photo of each split, by hash; these are enough to find all matches."""
    firsts: dict[Any, dict[str, _Photo]] = defaultdict(dict)
    for photo in photos:
        firsts[getattr(photo, key)].setdefault(photo.split, photo)
    return {value: list(of.values()) for value, of in firsts.items()}


def _nearest(photos: Iterable[_Photo], bits: int) -> dict[tuple[int, str], tuple[_Photo]]:
    """Return the near photo with the highest priority, by hash and split.

    Args:
        photos: The first photo of each split and hash. Any other photo has that one as its nearest
            in the same split, and shares its near photos in later splits.
        bits: Maximum Hamming distance.
    """
    by_id = sorted(photos)
    # Matches have priority by split, later ones first, then by id.
    order = sorted(range(len(by_id)), key=lambda index: -SPLIT_ORDER[by_id[index].split])
    indices = np.array(order, np.int64)
    splits = np.array([SPLIT_ORDER[by_id[index].split] for index in order], np.int64)
    hashes = np.array([by_id[index].phash for index in order], np.uint64)
    # One integer per photo: all pairs of many equal bands would not fit in memory.
    best = np.full(len(order), _NO_MATCH)
    for first, second in near_pairs(hashes, bits):
        distance = np.bitwise_count(hashes[first] ^ hashes[second]).astype(np.int64)
        same_split = (splits[first] == splits[second]).astype(np.int64)
        np.minimum.at(best, second, same_split << 48 | distance << 40 | indices[first])
    return {
        (by_id[own].phash, by_id[own].split): (by_id[match & (1 << 40) - 1],)
        for own, match in zip(order, best.tolist(), strict=True)
        if match != _NO_MATCH
    }


def _is_later(photo: _Photo, match: _Photo) -> bool:
    return SPLIT_ORDER[photo.split] < SPLIT_ORDER[match.split]


def _difference(photo: _Photo, match: _Photo) -> tuple[int, bool]:
    return (photo.phash ^ match.phash).bit_count(), photo.sha256 != match.sha256


@cache
def _cosines() -> npt.NDArray[np.float64]:
    """Return the first 8 rows of the 32-point DCT-II matrix, shape (8, 32)."""
    sample, frequency = np.arange(32), np.arange(8)[:, None]
    return np.cos(np.pi * frequency * (2 * sample + 1) / 64)
