"""Assign photos to splits, a pure function of their ids, groups and classes."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from hashlib import sha256
from typing import NamedTuple

from pets_core.data.sources.catalogue import LabelledPhoto, PredefinedSplit
from pets_core.errors import PetsError
from pets_core.records.base import Split
from pets_core.records.target_spec import target_spec

__all__ = [
    "SplitRow",
    "assign_splits",
    "hash_fraction",
    "largest_fraction",
    "smallest_fraction",
    "split_rows",
    "straddling_groups",
]

_MIN_PHOTOS = 5
"""A class of at least so many photos gets at least one validation photo."""


class SplitRow(NamedTuple):
    """Properties of a photo that determine its split.

    Attributes:
        key: Group name, or id of a photo without a group. A random split keeps keys together.
        label: Class; empty if the target is not a class.
        predefined_split: Split in the source's lists; None: in no list.
    """

    key: str
    label: str = ""
    predefined_split: PredefinedSplit | None = None


def hash_fraction(seed: int, key: str) -> float:
    """Return a pseudo-random number in [0, 1) from a hash of `seed` and `key`."""
    digest = sha256(f"{seed}:{key}".encode()).digest()
    # A float holds 53 bits.
    return (int.from_bytes(digest[:8], "big") >> 11) / (1 << 53)


def split_rows(
    photos: Mapping[str, LabelledPhoto], targets: str, group_pattern: str | None
) -> dict[str, SplitRow]:
    """Return a `SplitRow` for each photo, by id.

    Args:
        photos: Photos by id.
        targets: Kind of target; only classes are balanced over the splits.
        group_pattern: Regular expression that extracts a photo's group from its id: the first
            capture group, or the whole match if there is none.

    Raises:
        PetsError: The pattern does not match some ids.
    """
    rows, unmatched = {}, []
    for photo_id, photo in photos.items():
        group = photo.group
        if group_pattern is not None:
            found = re.search(group_pattern, photo_id)
            group = found[1 if found.re.groups else 0] if found else ""
            if not group:
                unmatched.append(photo_id)
        label = photo.label if target_spec(targets).is_label else ""
        rows[photo_id] = SplitRow(group or photo_id, label, photo.predefined_split)
    if unmatched:
        raise PetsError(
            f"source.group_pattern = {group_pattern}: {len(unmatched)} of {len(photos)} ids do not "
            f"match, for example {min(unmatched)!r}. Match every id, or remove the pattern"
        )
    return rows


def assign_splits(
    photos: Mapping[str, SplitRow],
    *,
    use_predefined_split: bool,
    valid_fraction: float,
    test_fraction: float,
    seed: int,
) -> dict[str, Split | None]:
    """Assign each photo to a split.

    A photo is held out if its `hash_fraction` is below the fraction to hold out. Its split is thus
    independent of other photos, and the held-out share of a class is exact only on average.
    Exception: if a class of at least five photos would have no validation photo, its photo with the
    smallest `hash_fraction` is held out, with its group. So at most one photo or group of a class
    changes its split as a data set grows.

    Args:
        photos: Rows by photo id.
        use_predefined_split: Use the source's lists; validation photos are then chosen by
            `hash_fraction` from its `trainval` list.
        valid_fraction: Fraction held out for validation.
        test_fraction: Fraction held out for testing; ignored with a predefined split.
        seed: Seed of `hash_fraction`.

    Returns:
        Split by photo id; None for photos in no list of a predefined split.
    """
    splits: dict[str, Split | None] = {}
    randomized: dict[str, SplitRow] = {}
    for photo_id, row in photos.items():
        if use_predefined_split and row.predefined_split != "trainval":
            splits[photo_id] = row.predefined_split
            continue
        number = hash_fraction(seed, row.key)
        test = 0.0 if use_predefined_split else test_fraction
        splits[photo_id] = (
            "test" if number < test else "valid" if number < test + valid_fraction else "train"
        )
        if splits[photo_id] != "test":
            randomized[photo_id] = row
    if valid_fraction:
        keys = _keys_to_hold_out(randomized, splits, seed)
        splits |= {photo_id: "valid" for photo_id, row in randomized.items() if row.key in keys}
    return splits


def _keys_to_hold_out(
    randomized: Mapping[str, SplitRow], splits: Mapping[str, Split | None], seed: int
) -> set[str]:
    """Return the photos or groups to hold out so that each large class has a validation photo."""
    num_photos: dict[str, int] = defaultdict(int)
    keys: dict[str, set[str]] = defaultdict(set)
    validated = set()
    for photo_id, row in randomized.items():
        num_photos[row.label] += 1
        keys[row.label].add(row.key)
        if splits[photo_id] == "valid":
            validated.add(row.label)
    return {
        # A class with a single group keeps it for training.
        min(own, key=lambda key: (hash_fraction(seed, key), key))
        for label, own in keys.items()
        if num_photos[label] >= _MIN_PHOTOS and label not in validated and len(own) > 1
    }


def straddling_groups(
    rows: Mapping[str, SplitRow], splits: Mapping[str, Split | None]
) -> tuple[str, ...]:
    """Return a warning if the source's predefined split separates photos of a group."""
    sides: dict[str, set[Split]] = defaultdict(set)
    for photo_id, row in rows.items():
        if split := splits[photo_id]:
            sides[row.key].add(split)
    straddling = sorted(key for key, own in sides.items() if len(own) > 1)
    if not straddling:
        return ()
    return (
        f"{len(straddling)} of {len(sides)} groups have photos in several splits, for example "
        f"{straddling[0]!r}, because the source's predefined split is used. Set source.split = "
        "random to keep groups together.",
    )


def smallest_fraction(keys: Iterable[str], seed: int) -> float:
    """Return the smallest multiple of 0.001 that holds out at least one photo or group."""
    return math.floor(1000 * min(hash_fraction(seed, key) for key in keys) + 1) / 1000


def largest_fraction(keys: Collection[Collection[str]], seed: int) -> float:
    """Return the largest multiple of 0.001 that leaves each class a training photo.

    Args:
        keys: Photos or groups of each class.
        seed: Seed of `hash_fraction`.
    """
    return (
        math.floor(1000 * min(max(hash_fraction(seed, key) for key in own) for own in keys)) / 1000
    )
