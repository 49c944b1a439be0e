"""All that people look at of a model of ratings, made without torch."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import safetensors.numpy

from pets_core import plots, storage
from pets_core.data.dataset import read_table, write_table
from pets_core.models.card import WEIGHTS
from pets_core.ratings.baselines import damped_biases
from pets_core.ratings.dataset import Ratings, Vocabulary, open_ratings, read_vocabulary
from pets_core.ratings.records import (
    ErrorRow,
    ItemRow,
    RatingsManifest,
    RatingsPrediction,
    RatingsReport,
)

__all__ = ["error_row", "nearest", "principal_plane", "review_ratings"]

_NUM_LISTED = 10
_NUM_NEAREST = 5
_NUM_MAPPED = 50
_MIN_RATINGS = 5
"""Biases that rest on fewer are not listed."""

Floats = npt.NDArray[np.floating]


def review_ratings(
    run_url: str, manifest: RatingsManifest, predicted: RatingsPrediction
) -> RatingsReport:
    """Judge predictions beside the baselines, and look at the factors; stored under `evaluation`.

    Args:
        run_url: Folder of the run.
        manifest: The ratings.
        predicted: What the model said.
    """
    began = time.monotonic()
    ratings, names = open_ratings(manifest, predicted.split), read_vocabulary(manifest)
    said = read_table(predicted.predictions_url, ["predicted"])["predicted"].to_numpy()
    weights = safetensors.numpy.load(storage.read_bytes(storage.join(predicted.model_url, WEIGHTS)))
    factors = weights["item_factors.weight"]
    biases = weights["item_bias.weight"][:, 0] if "item_bias.weight" in weights else None
    order = np.argsort(-names.num_ratings_by_item, kind="stable")
    popular = order[names.num_ratings_by_item[order] > 0]
    url = storage.join(run_url, "evaluation")
    report = RatingsReport(
        model_url=predicted.model_url,
        split=predicted.split,
        num_rows=len(said),
        num_cold=int(((ratings.users == 0) | (ratings.items == 0)).sum()),
        errors=_errors(manifest, ratings, said),
        best=_by_bias(names, biases, highest=True),
        worst=_by_bias(names, biases, highest=False),
        popular=_with_nearest(names, biases, factors, popular[:_NUM_LISTED]),
        url=url,
        ratings_per_second=predicted.ratings_per_second,
        seconds=0.0,
    )
    mapped = popular[:_NUM_MAPPED]
    places = principal_plane(factors[mapped])
    picture = plots.embedding_map(places, [names.titles[index] for index in mapped])
    storage.write_bytes(report.file("map.png"), picture)
    storage.write_bytes(report.file("errors.png"), plots.rating_errors(ratings.ratings, said))
    write_table(report.file("items.parquet"), _items_table(names, biases, factors))
    report = report.model_copy(update={"seconds": time.monotonic() - began})
    storage.write_bytes(report.file("report.json"), report.model_dump_json(indent=2).encode())
    return report


def error_row(name: str, ratings: Ratings, predicted: Floats) -> ErrorRow:
    """Errors of predictions, of known and of cold pairs too."""
    errors = predicted.astype(np.float64) - ratings.ratings
    known = (ratings.users > 0) & (ratings.items > 0)
    return ErrorRow(
        name=name,
        rmse=_rmse(errors),
        mae=float(np.abs(errors).mean()),
        rmse_known=_rmse(errors[known]) if known.any() else None,
        rmse_cold=_rmse(errors[~known]) if not known.all() else None,
    )


def nearest(
    factors: npt.NDArray[np.float32], indices: npt.NDArray[np.int64], count: int
) -> npt.NDArray[np.int64]:
    """The items whose factors point the most alike, by cosine similarity.

    Args:
        factors: Of all items by index, (num_items + 1, F); row 0 is nobody's.
        indices: Items whose nearest are wanted, (n,).
        count: How many of each; fewer where there are not as many.

    Returns:
        Indices, nearest first, itself left out, (n, count).
    """
    length = np.linalg.norm(factors, axis=1, keepdims=True)
    directions = factors / np.maximum(length, np.finfo(np.float32).tiny)
    alike = directions[indices] @ directions.T
    alike[:, 0] = -np.inf
    alike[np.arange(len(indices)), indices] = -np.inf
    count = max(min(count, len(factors) - 2), 0)
    order: npt.NDArray[np.int64] = np.argsort(-alike, axis=1, kind="stable")[:, :count]
    return order


def principal_plane(factors: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """The two directions in which factors differ most (principal components; Pearson 1901).

    Args:
        factors: (n, F), of one item at least.

    Returns:
        Coordinates, (n, 2); the second is 0 where there is but one factor.
    """
    centred = factors.astype(np.float64) - factors.mean(0, dtype=np.float64)
    left, lengths, _ = np.linalg.svd(centred, full_matrices=False)
    plane = np.zeros((len(factors), 2))
    found = (left * lengths)[:, :2]
    plane[:, : found.shape[1]] = found
    return plane


def _errors(manifest: RatingsManifest, ratings: Ratings, said: Floats) -> tuple[ErrorRow, ...]:
    biases = damped_biases(open_ratings(manifest, "train"), manifest.num_users, manifest.num_items)
    low, high = manifest.y_range
    by_biases = biases.predict(ratings).clip(low, high)
    return (
        error_row("this model", ratings, said),
        error_row("user and item biases", ratings, by_biases),
        error_row("mean rating", ratings, np.full(len(said), biases.mean)),
    )


def _by_bias(
    names: Vocabulary, biases: npt.NDArray[np.float32] | None, *, highest: bool
) -> tuple[ItemRow, ...]:
    if biases is None:
        return ()
    listed = np.flatnonzero(names.num_ratings_by_item >= _MIN_RATINGS)
    order = listed[np.argsort(-biases[listed] if highest else biases[listed], kind="stable")]
    return tuple(_item(names, biases, index) for index in order[:_NUM_LISTED])


def _with_nearest(
    names: Vocabulary,
    biases: npt.NDArray[np.float32] | None,
    factors: npt.NDArray[np.float32],
    indices: npt.NDArray[np.int64],
) -> tuple[ItemRow, ...]:
    found = nearest(factors, indices, _NUM_NEAREST)
    return tuple(
        _item(names, biases, index, [names.titles[other] for other in others])
        for index, others in zip(indices, found, strict=True)
    )


def _item(
    names: Vocabulary,
    biases: npt.NDArray[np.float32] | None,
    index: np.int64,
    others: Sequence[str] = (),
) -> ItemRow:
    return ItemRow(
        item=names.items[index],
        title=names.titles[index],
        num_ratings=int(names.num_ratings_by_item[index]),
        bias=None if biases is None else float(biases[index]),
        nearest=tuple(others),
    )


def _items_table(
    names: Vocabulary,
    biases: npt.NDArray[np.float32] | None,
    factors: npt.NDArray[np.float32],
) -> pa.Table:
    """A row for each known item: id, title, ratings, bias, factors."""
    columns = {
        "item": pa.array(names.items[1:], pa.string()),
        "title": pa.array(names.titles[1:], pa.string()),
        "num_ratings": names.num_ratings_by_item[1:],
        "bias": pa.nulls(len(factors) - 1, pa.float32()) if biases is None else biases[1:],
        "factors": pa.FixedSizeListArray.from_arrays(
            pa.array(factors[1:].reshape(-1)), factors.shape[1]
        ),
    }
    return pa.table(columns)


def _rmse(errors: Floats) -> float:
    return float(np.sqrt(np.mean(np.square(errors, dtype=np.float64))))
