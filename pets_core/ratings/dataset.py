"""The stored form of ratings: their folder, its Parquet files, its manifest.

<store>/ratings/<name>/<fingerprint>/   train.parquet, valid.parquet, test.parquet, users.parquet,
                                        items.parquet, manifest.json: one version
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pets_core.ratings.config import RatingsSourceConfig
from pets_core.records import Record, Split

__all__ = [
    "Ratings",
    "RatingsFile",
    "RatingsManifest",
    "RatingsSplit",
    "Vocabulary",
    "ingest_ratings",
    "load_ratings_manifest",
    "open_ratings",
    "read_vocabulary",
]


class RatingsFile(Record):
    """One Parquet file, by its name in the folder of the version."""

    path: str
    num_rows: int
    sha256: str


class RatingsSplit(RatingsFile):
    """The ratings of one split, and how many of its users and items have no training ratings."""

    num_cold_users: int = 0
    num_cold_items: int = 0


class RatingsManifest(Record):
    """A committed, immutable version of ratings. Its presence in the folder is the commit.

    Attributes:
        name: Of the data set.
        fingerprint: Hash of the files' content.
        url: Folder of the version.
        source_url: The table that the ratings came from.
        num_users: Users with training ratings; their indices are 1 to `num_users`, and 0 is any
            other user.
        num_items: Items with training ratings, their indices likewise.
        splits: train, and valid and test where ratings are held out for them.
        users: The file of the users' ids.
        items: The file of the items' ids and titles.
        y_range: Lowest and highest rating of the scale.
        mean: Of the training ratings.
        created_at: UTC, ISO 8601.
    """

    schema_version: int = 1
    name: str
    fingerprint: str
    url: str
    source_url: str
    num_users: int
    num_items: int
    splits: dict[Split, RatingsSplit]
    users: RatingsFile
    items: RatingsFile
    y_range: tuple[float, float]
    mean: float
    created_at: str = ""


class Ratings(NamedTuple):
    """The ratings of one split.

    Attributes:
        users: Indices, int32 (N,); 0 where the user has no training ratings.
        items: Indices, int32 (N,), likewise.
        ratings: float32 (N,).
        times: int64 (N,), in the source's own unit, of dates seconds since 1970; None where the
            source has no times.
    """

    users: npt.NDArray[np.int32]
    items: npt.NDArray[np.int32]
    ratings: npt.NDArray[np.float32]
    times: npt.NDArray[np.int64] | None


class Vocabulary(NamedTuple):
    """What indices stand for; all by index, that of 0 (unknown) an empty text, its count 0.

    Attributes:
        users: Ids, num_users + 1 of them.
        items: Ids, num_items + 1 of them.
        titles: Of the items; the id where none is known.
        num_ratings_by_user: Training ratings of each user, int64 (num_users + 1,).
        num_ratings_by_item: Training ratings of each item, int64 (num_items + 1,).
    """

    users: list[str]
    items: list[str]
    titles: list[str]
    num_ratings_by_user: npt.NDArray[np.int64]
    num_ratings_by_item: npt.NDArray[np.int64]


def ingest_ratings(store: str, cache_dir: str, source: RatingsSourceConfig) -> RatingsManifest:
    """Bring ratings into the store, or find that this very version is there already.

    Args:
        store: Root of the store, a path or any fsspec URL.
        cache_dir: Local folder for downloads.
        source: Where the ratings come from and how they are split.

    Raises:
        PetsError: The source cannot be read, or its ratings are not usable. Nothing is then
            written.
    """
    raise NotImplementedError


def load_ratings_manifest(url: str) -> RatingsManifest:
    """Read the manifest of the version in folder `url`, wherever that folder now lies.

    Raises:
        PetsError: There is no committed version, or its manifest is damaged.
    """
    raise NotImplementedError


def open_ratings(manifest: RatingsManifest, split: Split) -> Ratings:
    """Read the ratings of a split, and compare their file with the manifest's SHA-256.

    Raises:
        PetsError: There is no such split, or its file is absent or another.
    """
    raise NotImplementedError


def read_vocabulary(manifest: RatingsManifest) -> Vocabulary:
    """Read what the indices of users and items stand for; errors as `open_ratings`."""
    raise NotImplementedError
