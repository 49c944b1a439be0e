"""Which photo goes to which split: a pure function of the photos' ids, groups and classes."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from hashlib import sha256
from typing import NamedTuple

from pets_core.data.sources.catalogue import LabelledPhoto, Official
from pets_core.errors import PetsError
from pets_core.records.base import Split
from pets_core.records.target_spec import target_spec

__all__ = [
    "SplitRow",
    "assign_splits",
    "draw",
    "largest_fraction",
    "smallest_fraction",
    "split_rows",
    "straddling_groups",
]

_MIN_PHOTOS = 5
"""A class with so many photos has at least one for validation."""


class SplitRow(NamedTuple):
    """What the split of a photo depends on.

    Attributes:
        key: Its id, or its group's name: photos of one key are on one side.
        label: Its class; empty where the target is another.
        official: Its place in the source's own lists; None: in none.
    """

    key: str
    label: str = ""
    official: Official | None = None


def draw(seed: int, key: str) -> float:
    """A number from 0 to below 1 that looks random and depends on the arguments alone."""
    digest = sha256(f"{seed}:{key}".encode()).digest()
    # 53 bits are what a float holds.
    return (int.from_bytes(digest[:8], "big") >> 11) / (1 << 53)


def split_rows(
    photos: Mapping[str, LabelledPhoto], targets: str, group_pattern: str | None
) -> dict[str, SplitRow]:
    """What the split depends on, by photo.

    Args:
        photos: By id.
        targets: Only a class is balanced over the splits.
        group_pattern: A regular expression that finds an id's group: its first group, else all of
            it.

    Raises:
        PetsError: The pattern finds no group in some ids.
    """
    rows, without = {}, []
    for photo_id, photo in photos.items():
        group = photo.group
        if group_pattern is not None:
            found = re.search(group_pattern, photo_id)
            group = found[1 if found.re.groups else 0] if found else ""
            if not group:
                without.append(photo_id)
        label = photo.label if target_spec(targets).is_label else ""
        rows[photo_id] = SplitRow(group or photo_id, label, photo.official)
    if without:
        raise PetsError(
            f"source.group_pattern = {group_pattern}: {len(without)} of {len(photos)} ids have no "
            f"match, {min(without)!r} for one: match every id, or leave the pattern out"
        )
    return rows


def assign_splits(
    photos: Mapping[str, SplitRow],
    *,
    official: bool,
    valid_fraction: float,
    test_fraction: float,
    seed: int,
) -> dict[str, Split | None]:
    """Assign each photo to a split.

    A photo is held out when its draw is below the fraction to hold out. So its split depends on no
    other photo, and the share held out of a class is exact only on average. The exception: where a
    class of at least five photos would have none for validation, the photo with the smallest draw
    of its class is held out, with its group. So at most one photo or group of a class changes sides
    as a data set grows.

    Args:
        photos: By id.
        official: Whether the source's own lists are the split; the validation photos of its
            `trainval` list are drawn.
        valid_fraction: Share of the photos held out for validation.
        test_fraction: Share held out for testing, where there are no lists.
        seed: Of the draws.

    Returns:
        The split by id; None where there are lists and the photo is in none.
    """
    splits: dict[str, Split | None] = {}
    drawn: dict[str, SplitRow] = {}
    for photo_id, row in photos.items():
        if official and row.official != "trainval":
            splits[photo_id] = row.official
            continue
        number = draw(seed, row.key)
        test = 0.0 if official else test_fraction
        splits[photo_id] = (
            "test" if number < test else "valid" if number < test + valid_fraction else "train"
        )
        if splits[photo_id] != "test":
            drawn[photo_id] = row
    if valid_fraction:
        keys = _keys_to_hold_out(drawn, splits, seed)
        splits |= {photo_id: "valid" for photo_id, row in drawn.items() if row.key in keys}
    return splits


def _keys_to_hold_out(
    drawn: Mapping[str, SplitRow], splits: Mapping[str, Split | None], seed: int
) -> set[str]:
    """The photos or groups that give each large enough class a validation photo."""
    num_photos: dict[str, int] = defaultdict(int)
    keys: dict[str, set[str]] = defaultdict(set)
    validated = set()
    for photo_id, row in drawn.items():
        num_photos[row.label] += 1
        keys[row.label].add(row.key)
        if splits[photo_id] == "valid":
            validated.add(row.label)
    return {
        # Without another group there would be no photo to train on.
        min(own, key=lambda key: (draw(seed, key), key))
        for label, own in keys.items()
        if num_photos[label] >= _MIN_PHOTOS and label not in validated and len(own) > 1
    }


def straddling_groups(
    rows: Mapping[str, SplitRow], splits: Mapping[str, Split | None]
) -> tuple[str, ...]:
    """A warning where the source's own lists put photos of one group on several sides."""
    sides: dict[str, set[Split]] = defaultdict(set)
    for photo_id, row in rows.items():
        if split := splits[photo_id]:
            sides[row.key].add(split)
    straddling = sorted(key for key, own in sides.items() if len(own) > 1)
    if not straddling:
        return ()
    return (
        f"{len(straddling)} of {len(sides)} groups have photos in several splits, "
        f"{straddling[0]!r} for one, since the source's own lists are used: set source.split = "
        "random to keep groups together.",
    )


def smallest_fraction(keys: Iterable[str], seed: int) -> float:
    """The smallest fraction, in steps of 0.001, that holds out at least one photo or group."""
    return math.floor(1000 * min(draw(seed, key) for key in keys) + 1) / 1000


def largest_fraction(keys: Collection[Collection[str]], seed: int) -> float:
    """The largest fraction, in steps of 0.001, that leaves each class a training photo.

    Args:
        keys: Photos or groups of each class.
        seed: Of the draws.
    """
    return math.floor(1000 * min(max(draw(seed, key) for key in own) for own in keys)) / 1000
