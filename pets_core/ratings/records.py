"""Frozen records of what becomes of ratings."""

from __future__ import annotations

from typing import ClassVar

from pets_core.records.base import Record, Split

__all__ = [
    "RATINGS_SCHEMA_VERSION",
    "ErrorRow",
    "ItemRow",
    "RatingsFile",
    "RatingsManifest",
    "RatingsPrediction",
    "RatingsReport",
    "RatingsRun",
    "RatingsSplit",
    "WeightDecayTrial",
]


RATINGS_SCHEMA_VERSION = 1


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


class RatingsPrediction(Record):
    """What a model says of the ratings of a split, in a file.

    Attributes:
        model_url: The model.
        split: Which ratings.
        predictions_url: user, item (null where not known), rating, predicted.
        ratings_per_second: That were predicted.
    """

    model_url: str
    split: Split
    predictions_url: str
    ratings_per_second: float


class ErrorRow(Record):
    """How far predictions are from ratings.

    Attributes:
        name: Whose predictions.
        rmse: Root mean squared error, in ratings' units.
        mae: Mean absolute error.
        rmse_known: Of ratings whose user and item are both known; None where there are none.
        rmse_cold: Of the others; None where there are none.
    """

    name: str
    rmse: float
    mae: float
    rmse_known: float | None
    rmse_cold: float | None


class ItemRow(Record):
    """An item as the model sees it.

    Attributes:
        item: Its id.
        title: Its title.
        num_ratings: In training.
        bias: How far it is rated above the mean by all alike, before the sigmoid; None where the
            model has no biases.
        nearest: Titles of the items of the most similar factors, nearest first.
    """

    item: str
    title: str
    num_ratings: int
    bias: float | None = None
    nearest: tuple[str, ...] = ()


class RatingsReport(Record):
    """How a model of ratings did.

    Attributes:
        model_url: The model.
        split: The ratings judged.
        num_rows: How many.
        num_cold: Of them, those of a user or item without training ratings.
        errors: Of the model first, then of the baselines.
        best: Items rated highest whoever rates them, by bias.
        worst: Items rated lowest.
        popular: Those with the most training ratings, with their nearest.
        url: Folder of all that was made.
        ratings_per_second: That were predicted.
        seconds: That the review took.
    """

    model_url: str
    split: Split
    num_rows: int
    num_cold: int
    errors: tuple[ErrorRow, ...]
    best: tuple[ItemRow, ...]
    worst: tuple[ItemRow, ...]
    popular: tuple[ItemRow, ...]
    url: str
    ratings_per_second: float
    seconds: float

    @property
    def rmse(self) -> float:
        """Of the model."""
        return self.errors[0].rmse

    def file(self, name: str) -> str:
        """URL of what was made, by its name."""
        return f"{self.url}/{name}"
