"""Partition the photos of each split into shards by hashes of their ids."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import NamedTuple

from pets_core.data.sources.catalogue import Box
from pets_core.records.base import Split

__all__ = ["Leaf", "PlannedPhoto", "partition"]

_SPLITS: tuple[Split, ...] = ("train", "valid", "test")
_HASH_BITS = 64


class PlannedPhoto(NamedTuple):
    """Photo to be written to a shard.

    Attributes:
        id: Photo id.
        path: Path of the file in the source.
        version_tag: Version tag of the file; it changes with the file's content.
        label: Class index; None if the target is not a class.
        head_box: Bounding box of the head, if the source has one.
        tags: Tag indices, if the target is tags.
        numbers: Target numbers or coordinates; coordinates are in pixels.
        annotation_size: Width and height of the photo that coordinates and box refer to, pixels;
            empty: the upright photo's.
        existing_shard: Existing shard of an earlier version that holds the same photo; empty: none.
    """

    id: str
    path: str
    version_tag: str
    label: int | None
    head_box: Box | None
    tags: tuple[int, ...] = ()
    numbers: tuple[float, ...] = ()
    annotation_size: tuple[int, ...] = ()
    existing_shard: str = ""


@dataclass(frozen=True)
class Leaf:
    """Photos of one shard in order, with the common first bits of their hashes."""

    split: Split
    prefix: str
    photos: list[PlannedPhoto]


def partition(
    photos: Mapping[str, tuple[PlannedPhoto, Split]], sizes: Mapping[str, int], bound: int
) -> Iterator[Leaf]:
    """Partition each split by the first bits of its photos' hashes.

    A leaf is halved while its photos take more than `bound` bytes (extendible hashing: Fagin et
    al. 1979). Photos are sorted by hash, so each shard is a random sample of its split.
    """

    def halve(split: Split, prefix: str, own: list[tuple[int, PlannedPhoto]]) -> Iterator[Leaf]:
        num_bytes = sum(sizes[photo.id] for _, photo in own)
        if not own:
            return
        if num_bytes <= bound or len(own) == 1 or len(prefix) == _HASH_BITS:
            yield Leaf(split, prefix, [photo for _, photo in own])
            return
        bit = 1 << (_HASH_BITS - 1 - len(prefix))
        middle = bisect_left(own, True, key=lambda item: bool(item[0] & bit))
        yield from halve(split, prefix + "0", own[:middle])
        yield from halve(split, prefix + "1", own[middle:])

    for split in _SPLITS:
        own = [(_hash_bits(photo.id), photo) for photo, of in photos.values() if of == split]
        yield from halve(split, "", sorted(own))


def _hash_bits(photo_id: str) -> int:
    return int.from_bytes(sha256(f"shard:{photo_id}".encode()).digest()[: _HASH_BITS // 8], "big")
