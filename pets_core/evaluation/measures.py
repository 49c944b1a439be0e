"""What the predictions of one split come to, as numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pets_core.evaluation.confusion import confusion_counts, without_diagonal
from pets_core.evaluation.predictions import Predictions
from pets_core.records.evaluation import ClassMeasures, Share

__all__ = ["TOP_K", "bootstrap_share", "measure_classes", "species_counts", "top_k"]

TOP_K = (1, 2, 3, 5)
_RESAMPLES, _COVERAGE = 10_000, 0.95
_ROWS = 4096


def bootstrap_share(count: int, total: int, *, seed: int = 0) -> Share:
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
        return Share(value=share, low=float(ends.low), high=float(ends.high))
    drawn = np.random.default_rng(seed).binomial(total, share, _RESAMPLES) / total
    low, high = np.quantile(drawn, [(1 - _COVERAGE) / 2, (1 + _COVERAGE) / 2])
    return Share(value=share, low=float(low), high=float(high))


def top_k(predictions: Predictions) -> dict[int, float]:
    """Share of photos whose class is among the k most probable, for each k that makes sense.

    Of classes that are equally probable the first comes first, as it does in the prediction.
    """
    starts = range(0, len(predictions), _ROWS)
    places = [_place(predictions, slice(start, start + _ROWS)) for start in starts]
    place = np.concatenate(places)
    return {k: float((place < k).mean()) for k in TOP_K if k == 1 or k < len(predictions.names)}


def _place(predictions: Predictions, rows: slice) -> NDArray[np.int64]:
    """How many classes come before the true one."""
    values, targets = predictions.probabilities[rows], predictions.targets[rows, None]
    own = np.take_along_axis(values, targets, axis=1)
    before = (values > own) | ((values == own) & (np.arange(values.shape[1]) < targets))
    place: NDArray[np.int64] = before.sum(1)
    return place


def measure_classes(predictions: Predictions) -> list[ClassMeasures]:
    """Precision, recall, F1 and support of each class, in index order."""
    from sklearn.metrics import precision_recall_fscore_support

    labels = np.arange(len(predictions.names))
    counts = confusion_counts(predictions.targets, predictions.predicted, len(labels))
    precision, recall, f1, support = precision_recall_fscore_support(
        predictions.targets, predictions.predicted, labels=labels, zero_division=np.nan
    )
    errors = without_diagonal(counts)
    return [
        ClassMeasures(
            name=info.name,
            species=info.species,
            support=int(support[i]),
            correct=int(counts[i, i]),
            precision=_known(precision[i]),
            recall=_known(recall[i]),
            f1=_known(f1[i]),
            taken_for=predictions.names[int(errors[i].argmax())] if errors[i].any() else None,
        )
        for i, info in enumerate(predictions.info.classes)
    ]


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def species_counts(
    counts: NDArray[np.int64], species: Sequence[str | None]
) -> tuple[list[str], NDArray[np.int64]]:
    """Add the classes of each species up: cats taken for dogs, and dogs for cats.

    Args:
        counts: Shape (C, C): actual class in rows, predicted class in columns.
        species: Of each class; classes without one are left out.

    Returns:
        The species in their alphabet's order, S of them, and counts (S, S).
    """
    names = sorted({name for name in species if name is not None})
    member = np.array([[name == own for own in species] for name in names], np.int64)
    member = member.reshape(len(names), len(species))
    return names, member @ counts @ member.T
