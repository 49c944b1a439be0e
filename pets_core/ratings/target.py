"""Ratings as a kind of target: predictions file and evaluation, without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from pets_core import storage
from pets_core.models.card import WEIGHTS
from pets_core.ratings.baselines import fit_biases
from pets_core.ratings.dataset import (
    Ratings,
    load_ratings,
    load_ratings_manifest,
    parquet_bytes,
    read_vocabulary,
)
from pets_core.ratings.items import Items
from pets_core.ratings.records import RatingsManifest
from pets_core.records.evaluation import Highlights, Metric, Section
from pets_core.targets.base import Evaluation, Evaluator
from pets_core.targets.regression.metrics import rmse
from pets_core.targets.regression.target import Numbers, NumbersEvaluator

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["RATINGS", "RatingErrors", "RatingsEvaluator", "rating_errors"]

Floats = npt.NDArray[np.floating]


class RatingErrors(NamedTuple):
    """Errors of predicted ratings.

    Attributes:
        name: Name of the predictor.
        rmse: Root mean squared error, in the unit of ratings.
        mae: Mean absolute error, in the unit of ratings.
        rmse_known: RMSE of pairs whose user and item have training ratings; None if there are none.
        rmse_cold: RMSE of the other pairs; None if there are none.
    """

    name: str
    rmse: float
    mae: float
    rmse_known: float | None
    rmse_cold: float | None


def rating_errors(name: str, ratings: Ratings, predicted: Floats) -> RatingErrors:
    """Return the errors of predictions (N,), in total and for known and cold pairs."""
    errors = predicted.astype(np.float64) - ratings.ratings
    known = (ratings.users > 0) & (ratings.items > 0)
    return RatingErrors(
        name=name,
        rmse=rmse(errors),
        mae=float(np.abs(errors).mean()),
        rmse_known=rmse(errors[known]) if known.any() else None,
        rmse_cold=rmse(errors[~known]) if not known.all() else None,
    )


class RatingsEvaluator(NumbersEvaluator):
    """Evaluates predicted ratings, with the mean rating and biases as baselines."""

    def evaluate(self) -> Evaluation:
        """Return the errors of the model and the baselines, the items and a map of them."""
        from pets_core.plots.ratings import rating_errors as plot_errors

        manifest = load_ratings_manifest(self.info.dataset_url)
        ratings = load_ratings(manifest, self.info.split)
        predicted = self.predictions.outputs[:, 0]
        errors = _errors(manifest, ratings, predicted)
        items = Items(read_vocabulary(manifest), *_read_items(self.info.model_url))
        num_cold = int(((ratings.users == 0) | (ratings.items == 0)).sum())
        tables, figures = items.tables(), {"map": items.map()}
        return Evaluation(
            metrics=_metrics(errors),
            baselines={f"the {other.name}": other.rmse for other in errors[1:]},
            details=[
                f"{num_cold:,} of the ratings have a user or an item without training ratings "
                "(cold), whose factors are 0."
            ],
            highlights=_highlights(errors),
            sections=[*_SECTIONS, *(_ITEM_SECTIONS[name] for name in tables), _MAP],
            tables={"errors": _table(errors), **tables},
            figures={"errors": plot_errors(ratings.ratings, predicted), **figures},
            files={"items.parquet": parquet_bytes(items.table())},
            task="predicts how users rate items",
            pipeline_tag="tabular-regression",
        )


class RatingsTarget(Numbers):
    """Ratings of items by users. Not a photo target, so not in the registry of targets."""

    name = "ratings"
    evaluator: ClassVar[type[Evaluator]] = RatingsEvaluator


RATINGS = RatingsTarget()

_SECTIONS = (
    Section(
        key="ratings-errors", title="Errors", table="errors",
        text="RMSE and MAE of the model and of two baselines: user and item biases, and the mean "
        "rating. Cold: user or item has no training ratings.",
        description="Errors of the model and the baselines",
    ),
    Section(
        key="ratings-predicted", title="Predicted and actual ratings", figure="errors",
        figure_alt="Predicted against actual ratings, and their difference",
        text="Left: predicted against actual ratings; the dashed line marks equal values. Right: "
        "errors.",
        description="Predicted against actual ratings",
    ),
)  # fmt: skip
_ITEM_SECTIONS = {
    name: Section(key=f"items-{name}", title=title, table=name, text=text, description=title)
    for name, title, text in (
        ("best", "Rated highest", "Items with the highest bias, the highest first."),
        ("worst", "Rated lowest", "Items with the lowest bias, the lowest first."),
        ("popular", "Most rated", "Items with the most training ratings, and their nearest "
         "items by cosine similarity of factors."),
    )
}  # fmt: skip
_MAP = Section(
    key="items-map", title="Map of items", figure="map",
    figure_alt="Items by the first two principal components of their factors",
    text="First two principal components of the factors of the most rated items. All items: "
    "items.parquet.",
    description="Items by the principal components of their factors",
)  # fmt: skip


def _read_items(model_url: str) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return item biases (num_items + 1,) and item factors, by index."""
    weights = safetensors.numpy.load(storage.read_bytes(storage.join(model_url, WEIGHTS)))
    return weights["item_bias.weight"][:, 0], weights["item_factors.weight"]


def _errors(
    manifest: RatingsManifest, ratings: Ratings, predicted: Floats
) -> tuple[RatingErrors, ...]:
    """Return the errors of the model, of biases and of the mean rating, in this order."""
    biases = fit_biases(load_ratings(manifest, "train"), manifest.num_users, manifest.num_items)
    low, high = manifest.y_range
    by_biases = biases.predict(ratings).clip(low, high)
    return (
        rating_errors("this model", ratings, predicted),
        rating_errors("user and item biases", ratings, by_biases),
        rating_errors("mean rating", ratings, np.full(len(predicted), biases.mean)),
    )


def _metrics(errors: tuple[RatingErrors, ...]) -> list[Metric]:
    model, biases, mean = errors
    found = [Metric(name="MAE", value=model.mae, baseline=mean.mae)]
    for name, value, baseline in (
        ("RMSE of known pairs", model.rmse_known, mean.rmse_known),
        ("RMSE of cold pairs", model.rmse_cold, mean.rmse_cold),
    ):
        if value is not None:
            found.append(Metric(name=name, value=value, baseline=baseline))
    return [*found, Metric(name="RMSE of user and item biases", value=biases.rmse)]


def _table(errors: tuple[RatingErrors, ...]) -> pd.DataFrame:
    import pandas as pd

    names = ["predictions", "RMSE", "MAE", "RMSE of known pairs", "RMSE of cold pairs"]
    return pd.DataFrame(errors).set_axis(names, axis=1).astype(dict.fromkeys(names[1:], float))


def _highlights(errors: tuple[RatingErrors, ...]) -> Highlights:
    return Highlights(
        title="RMSE of the model and the baselines",
        columns=("predictions", "RMSE"),
        rows=tuple((row.name, f"{row.rmse:.4f}") for row in errors),
    )
