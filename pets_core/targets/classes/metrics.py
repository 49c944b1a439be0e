"""Metrics of predicted classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pets_core.records.evaluation import Interval
from pets_core.targets.classes.confusion import without_diagonal
from pets_core.targets.classes.predictions import ClassPredictions

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["TOP_K", "bootstrap_share", "class_table", "species_table", "top_k"]

TOP_K = (1, 2, 3, 5)
_RESAMPLES, _COVERAGE = 10_000, 0.95
_ROWS = 4096


def bootstrap_share(count: int, total: int, *, seed: int = 0) -> Interval:
    """Return a proportion with its 95% percentile bootstrap interval (Efron and Tibshirani, 1993).

    The count in a bootstrap resample is binomial, so each resample is one random number. If `count`
    is 0 or `total`, all resamples are equal, and the interval is Wilson's (1927).

    Args:
        count: Number of photos with the property.
        total: Number of photos, at least 1.
        seed: Random seed of the resamples.
    """
    share = count / total
    if count in (0, total):
        from scipy.stats import binomtest

        ends = binomtest(count, total).proportion_ci(_COVERAGE, method="wilson")
        return Interval(value=share, low=float(ends.low), high=float(ends.high))
    drawn = np.random.default_rng(seed).binomial(total, share, _RESAMPLES) / total
    low, high = np.quantile(drawn, [(1 - _COVERAGE) / 2, (1 + _COVERAGE) / 2])
    return Interval(value=share, low=float(low), high=float(high))


def top_k(predictions: ClassPredictions) -> dict[int, float]:
    """Return the top-k accuracy for k = 1 and each larger k of `TOP_K` below the class count.

    Ties are in order of class index, as in the prediction.
    """
    starts = range(0, len(predictions), _ROWS)
    rank = np.concatenate([_rank(predictions, slice(start, start + _ROWS)) for start in starts])
    return {k: float((rank < k).mean()) for k in TOP_K if k == 1 or k < len(predictions.names)}


def _rank(predictions: ClassPredictions, rows: slice) -> NDArray[np.int64]:
    """Return the rank of the actual class by probability, from 0."""
    values, targets = predictions.outputs[rows], predictions.targets[rows, None]
    own = np.take_along_axis(values, targets, axis=1)
    before = (values > own) | ((values == own) & (np.arange(values.shape[1]) < targets))
    rank: NDArray[np.int64] = before.sum(1)
    return rank


def class_table(predictions: ClassPredictions, counts: NDArray[np.int64]) -> pd.DataFrame:
    """Return precision, recall, F1 and support of each class, lowest recall first.

    Args:
        predictions: Predictions of N photos and C classes.
        counts: Confusion matrix, (C, C).

    Returns:
        Columns name, species, support, correct, precision, recall, f1, and taken_for, the most
        frequent wrong prediction. Undefined metrics are NaN; classes without photos come last.
    """
    import pandas as pd
    from sklearn.metrics import precision_recall_fscore_support

    labels = np.arange(len(predictions.names))
    precision, recall, f1, support = precision_recall_fscore_support(
        predictions.targets, predictions.predicted, labels=labels, zero_division=np.nan
    )
    errors, names = without_diagonal(counts), predictions.names
    table = pd.DataFrame(
        {
            "name": names,
            "species": [info.species for info in predictions.info.vocabulary],
            "support": support.astype(np.int64),
            "correct": counts.diagonal(),
            "precision": precision,
            "recall": recall,
            "f1": f1,
            "taken_for": [names[int(row.argmax())] if row.any() else None for row in errors],
        }
    )
    return table.sort_values("recall", kind="stable", na_position="last", ignore_index=True)


def species_table(counts: NDArray[np.int64], species: Sequence[str | None]) -> pd.DataFrame | None:
    """Return the confusion matrix of species, such as cats and dogs.

    Args:
        counts: Shape (C, C): actual class in rows, predicted class in columns.
        species: Species of each class; classes without one are dropped.

    Returns:
        Column actual, and one column for each predicted species, in alphabetical order; None if
        there are fewer than two species.
    """
    import pandas as pd

    names = sorted({name for name in species if name is not None})
    if len(names) < 2:
        return None
    member = np.array([[name == own for own in species] for name in names], np.int64)
    table = pd.DataFrame(member @ counts @ member.T, columns=names)
    table.insert(0, "actual", names)
    return table
