"""Frozen records of ratings: versions, runs and weight decay trials."""

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
    """A Parquet file of a version."""

    path: str
    num_rows: int
    sha256: str


class RatingsSplit(RatingsFile):
    """The file of a split, and its numbers of users and items without training ratings."""

    num_cold_users: int = 0
    num_cold_items: int = 0


class RatingsManifest(Record):
    """A committed, immutable version of ratings; its file in the folder commits the version.

    Attributes:
        name: Name of the data set.
        fingerprint: Hash of the files' content and the scale.
        url: Folder of the version.
        source_url: URL of the source table.
        num_users: Users with training ratings, with indices 1 to `num_users`; 0 is any other user.
        num_items: Items with training ratings, with indices 1 to `num_items`; 0 is any other item.
        splits: train and, if held out, valid and test.
        users: File of user ids.
        items: File of item ids and titles.
        y_range: Lowest and highest rating of the scale.
        mean: Mean of the training ratings.
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
        """The split to evaluate on: test if there is one, else valid."""
        return "test" if "test" in self.splits else "valid"

    @property
    def shared_files(self) -> Collection[str]:
        """Files outside the version's folder; none."""
        return ()


class RatingsRun(Record):
    """The folder of a run, and its version of ratings."""

    DATASET: ClassVar[str] = "ratings.json"

    url: str
    manifest: RatingsManifest


class WeightDecayTrial(Record):
    """A training run with one weight decay, and its errors in the epoch of the kept weights.

    Attributes:
        weight_decay: Weight decay of factors and biases.
        model_url: Folder of the model.
        train_rmse: RMSE of the training ratings, accumulated during that epoch.
        valid_rmse: RMSE of the validation ratings.
    """

    weight_decay: float
    model_url: str
    train_rmse: float
    valid_rmse: float
