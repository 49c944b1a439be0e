"""The versions of ratings in a store: listed, found, compared, verified and removed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from pets_core import storage
from pets_core.data.versions import list_all_versions
from pets_core.errors import PetsError
from pets_core.ratings.card import RecommenderCard
from pets_core.ratings.dataset import (
    load_ratings_manifest,
    open_part,
    open_ratings,
    read_pair_ids,
)
from pets_core.ratings.records import RatingsFile, RatingsManifest

__all__ = [
    "RatingsDifference",
    "diff_ratings",
    "list_ratings",
    "verify_ratings",
    "version_of",
]

_ROOM = "ratings"


class RatingsDifference(NamedTuple):
    """Changes from one version to another, as pairs of user and item."""

    added: list[str]
    removed: list[str]
    changed: list[str]
    """With another rating."""
    moved: list[str]
    """In another split."""


def list_ratings(store: str) -> list[RatingsManifest]:
    """Return all committed versions, oldest first."""
    return list_all_versions(store, _ROOM, load_ratings_manifest)


def version_of(store: str, card: RecommenderCard) -> RatingsManifest:
    """Return the version that a model was trained on; the store may have moved since.

    Raises:
        PetsError: It is gone.
    """
    root = storage.join(storage.absolute(store), _ROOM)
    places = [
        storage.join(root, name, card.dataset_fingerprint) for name in storage.list_folder(root)
    ]
    for url in (*places, card.dataset_url):
        if storage.exists(storage.join(url, "manifest.json")):
            return load_ratings_manifest(url)
    raise PetsError(
        f"the version of the ratings it was trained on, {card.dataset_fingerprint}, is neither in "
        f"{store} nor at {card.dataset_url}"
    )


def diff_ratings(old: RatingsManifest, new: RatingsManifest) -> RatingsDifference:
    """Compare two versions rating by rating."""
    before, after = _index(old), _index(new)
    both = sorted(before.keys() & after.keys())
    return RatingsDifference(
        added=sorted(after.keys() - before.keys()),
        removed=sorted(before.keys() - after.keys()),
        changed=[pair for pair in both if before[pair][0] != after[pair][0]],
        moved=[pair for pair in both if before[pair][1] != after[pair][1]],
    )


def verify_ratings(manifest: RatingsManifest) -> Iterator[tuple[RatingsFile, str]]:
    """Read every file of a version again.

    Yields:
        Each file, and what is wrong with it; empty where nothing is.
    """
    for file in (*manifest.splits.values(), manifest.users, manifest.items):
        try:
            open_part(manifest, file)
        except PetsError as error:
            yield file, str(error)
        else:
            yield file, ""


def _index(manifest: RatingsManifest) -> dict[str, tuple[float, str]]:
    """Return rating and split of each pair of user and item."""
    index: dict[str, tuple[float, str]] = {}
    for split in manifest.splits:
        users, items = (ids.to_pylist() for ids in read_pair_ids(manifest, split))
        ratings = open_ratings(manifest, split).ratings.tolist()
        for user, item, rating in zip(users, items, ratings, strict=True):
            index[f"{user} {item}"] = (rating, split)
    return index
