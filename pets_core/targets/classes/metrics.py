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
    """A share with its percentile bootstrap confidence interval (Efron and Tibshirani 1993).

    How many of `total` photos drawn with replacement have a property that `count` of them have is
    binomial, so that each resample is one number. Where all of them have it, or none, every
    resample is the same, and Wilson's interval (1927) is given.

    Args:
        count: Photos that have it.
        total: Photos in all, at least 1.
        seed: Of the resamples.
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
    """Share of photos whose class is among the k most probable, for each k that makes sense.

    Of classes that are equally probable the first comes first, as it does in the prediction.
    """
    starts = range(0, len(predictions), _ROWS)
    places = [_place(predictions, slice(start, start + _ROWS)) for start in starts]
    place = np.concatenate(places)
    return {k: float((place < k).mean()) for k in TOP_K if k == 1 or k < len(predictions.names)}


def _place(predictions: ClassPredictions, rows: slice) -> NDArray[np.int64]:
    """How many classes come before the true one."""
    values, targets = predictions.outputs[rows], predictions.targets[rows, None]
    own = np.take_along_axis(values, targets, axis=1)
    before = (values > own) | ((values == own) & (np.arange(values.shape[1]) < targets))
    place: NDArray[np.int64] = before.sum(1)
    return place


def class_table(predictions: ClassPredictions, counts: NDArray[np.int64]) -> pd.DataFrame:
    """Return precision, recall, F1 and support of each class, lowest recall first.

    Args:
        predictions: N photos of C classes.
        counts: Confusion matrix, (C, C).

    Returns:
        Columns name, species, support, correct, precision, recall, f1, and taken_for: the class it
        was most often mistaken for. What cannot be computed without photos is NaN; classes without
        photos come last.
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
            "species": [info.species for info in predictions.info.classes],
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
    """Add the classes of each species up: cats taken for dogs, and dogs for cats.

    Args:
        counts: Shape (C, C): actual class in rows, predicted class in columns.
        species: Of each class; classes without one are left out.

    Returns:
        Column actual, and a column for each predicted species, in alphabetical order; None where
        fewer than two species are known.
    """
    import pandas as pd

    names = sorted({name for name in species if name is not None})
    if len(names) < 2:
        return None
    member = np.array([[name == own for own in species] for name in names], np.int64)
    table = pd.DataFrame(member @ counts @ member.T, columns=names)
    table.insert(0, "actual", names)
    return table
