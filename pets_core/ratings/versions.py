"""Versions of ratings in a store: list, find, compare and verify."""

from __future__ import annotations

from collections.abc import Iterator

from pets_core import storage
from pets_core.data.versions import compare_versions, list_all_versions
from pets_core.errors import PetsError
from pets_core.ratings.card import RecommenderCard
from pets_core.ratings.dataset import (
    load_ratings,
    load_ratings_manifest,
    read_pair_ids,
    read_verified,
)
from pets_core.ratings.records import RatingsFile, RatingsManifest
from pets_core.storage.layout import MANIFEST, RATINGS

__all__ = [
    "diff_ratings",
    "find_model_version",
    "list_ratings",
    "verify_ratings",
]


def list_ratings(store: str) -> list[RatingsManifest]:
    """Return all committed versions, oldest first."""
    return list_all_versions(store, RATINGS, load_ratings_manifest)


def find_model_version(store: str, card: RecommenderCard) -> RatingsManifest:
    """Return the version that a model was trained on, also if the store was moved.

    Raises:
        PetsError: The version is missing.
    """
    root = storage.join(storage.absolute(store), RATINGS)
    candidates = [
        storage.join(root, name, card.dataset_fingerprint) for name in storage.list_folder(root)
    ]
    for url in (*candidates, card.dataset_url):
        if storage.exists(storage.join(url, MANIFEST)):
            return load_ratings_manifest(url)
    raise PetsError(
        f"version {card.dataset_fingerprint} of the ratings that the model was trained on is "
        f"neither in {store} nor at {card.dataset_url}"
    )


def diff_ratings(old: RatingsManifest, new: RatingsManifest) -> dict[str, list[str]]:
    """Compare two versions rating by rating.

    Returns:
        Pairs of user and item by "added", "removed", "changed" (another rating) and "moved"
        (another split).
    """
    return compare_versions(_index(old), _index(new), ["changed", "moved"])


def verify_ratings(manifest: RatingsManifest) -> Iterator[tuple[RatingsFile, str]]:
    """Read all files of a version, and verify their checksums.

    Yields:
        Each file and its error message, empty if the file is valid.
    """
    for file in (*manifest.splits.values(), manifest.users, manifest.items):
        try:
            read_verified(manifest, file)
        except PetsError as error:
            yield file, str(error)
        else:
            yield file, ""


def _index(manifest: RatingsManifest) -> dict[str, tuple[float, str]]:
    """Return the rating and split of each pair of user and item."""
    index: dict[str, tuple[float, str]] = {}
    for split in manifest.splits:
        users, items = (ids.to_pylist() for ids in read_pair_ids(manifest, split))
        ratings = load_ratings(manifest, split).ratings.tolist()
        for user, item, rating in zip(users, items, ratings, strict=True):
            index[f"{user} {item}"] = (rating, split)
    return index
