"""Frozen records of what becomes of ratings."""

from __future__ import annotations

from typing import ClassVar

from pets_core.ratings.dataset import RatingsManifest
from pets_core.records import Record, Split

__all__ = [
    "ErrorRow",
    "ItemRow",
    "RatingsPrediction",
    "RatingsReport",
    "RatingsRun",
    "WeightDecayTrial",
]


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
