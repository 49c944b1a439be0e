"""Frozen records of what becomes of ratings."""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar

from pets_core.records.base import Record, Split

__all__ = [
    "RATINGS_SCHEMA_VERSION",
    "RatingsFile",
    "RatingsManifest",
    "RatingsRun",
    "RatingsSplit",
    "WeightDecayTrial",
]


RATINGS_SCHEMA_VERSION = 2
"""Version 1 lacks the ids of users and items without training ratings."""


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

    schema_version: int = RATINGS_SCHEMA_VERSION
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

    @property
    def held_out(self) -> Split:
        """The split to evaluate on: test where there is one, else valid."""
        return "test" if "test" in self.splits else "valid"

    @property
    def shared_files(self) -> Collection[str]:
        """Names of files outside its folder; none."""
        return ()


class RatingsRun(Record):
    """The folder of a run, and the ratings that it began with."""

    DATASET: ClassVar[str] = "ratings.json"

    url: str
    manifest: RatingsManifest


class WeightDecayTrial(Record):
    """A training with one weight decay, and the errors of the epoch whose weights were kept.

    Attributes:
        weight_decay: Of factors and biases.
        model_url: The model.
        train_rmse: Of the training ratings, as they were learnt from in that epoch.
        valid_rmse: Of the validation ratings.
    """

    weight_decay: float
    model_url: str
    train_rmse: float
    valid_rmse: float
