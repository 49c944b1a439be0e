"""Comparison of a model with the champion on the same samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pets_core.errors import PetsError
from pets_core.evaluation.intervals import bootstrap_interval
from pets_core.records.evaluation import Comparison, Interval, LabelChange, Metric

__all__ = ["Labels", "ScoredSamples", "compare", "reduce_scores"]

_MAX_LISTED = 20
_RESAMPLES = 1999
_MOST_PERMUTED = 5_000
"""Maximum samples for scipy's permutation test, whose time grows quadratically."""
_BLOCK = 10_000_000

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Labels:
    """Labels of the samples, and whether the model predicted them.

    Attributes:
        names: L labels.
        rows: Sample index of each of M pairs of a sample and one of its labels, int64 (M,).
        labels: Label index of each pair, int64 (M,).
        found: Whether the model predicted the label of each pair, bool (M,).
    """

    names: Sequence[str]
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    found: NDArray[np.bool_]

    def supports(self, rows: NDArray[np.int64] | None = None) -> tuple[Floats, Floats]:
        """Return occurrences and true positives per label, (L,) each, of all or some samples."""
        chosen = slice(None) if rows is None else np.isin(self.rows, rows)
        labels, found = self.labels[chosen], self.found[chosen]
        size = len(self.names)
        support = np.bincount(labels, minlength=size).astype(np.float64)
        return support, np.bincount(labels, weights=found, minlength=size).astype(np.float64)

    @property
    def unseen(self) -> tuple[str, ...]:
        """Labels that no sample has, in index order."""
        support = self.supports()[0]
        return tuple(name for name, count in zip(self.names, support, strict=True) if not count)


@dataclass(frozen=True)
class ScoredSamples:
    """Score of each sample in the primary metric of one model.

    Attributes:
        metric: The primary metric. Its value is the mean of `scores`, or the root of that mean.
        ids: N sample ids.
        scores: Score of each sample, float64 (N,).
        is_root: Whether the metric is the root of the mean, as RMSE is of squared errors.
        labels: Labels of the samples; None for targets without labels.
        model_url: Folder of the model.
    """

    metric: Metric
    ids: Sequence[str]
    scores: Floats
    model_url: str
    is_root: bool = False
    labels: Labels | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.ids)

    def value(self, rows: NDArray[np.int64]) -> Metric:
        """Return the metric of some samples, without interval and baseline."""
        value = float(reduce_scores(self.scores[rows], self.is_root))
        return self.metric.model_copy(
            update={"value": value, "low": None, "high": None, "baseline": None}
        )


def compare(
    model: ScoredSamples, champion: ScoredSamples, trained_on: NDArray[np.bool_] | None = None
) -> Comparison:
    """Compare two models sample by sample.

    Scores of 0 and 1 are compared with McNemar's exact test (1947) and the interval of Agresti and
    Min (2005). Other scores are compared with a paired permutation test and a paired percentile
    bootstrap interval (Efron and Tibshirani, 1993).

    Args:
        model: Scores of the model.
        champion: Scores of the champion. Samples that only one model has are ignored.
        trained_on: Whether one of the models was trained on each sample of `model`, bool (N,).
            These samples are excluded. None if unknown.

    Raises:
        PetsError: The models have no sample in common, all common samples are excluded, or a score
            is not finite.
    """
    champion_rows = {sample: row for row, sample in enumerate(champion.ids)}
    own = np.array(
        [row for row, sample in enumerate(model.ids) if sample in champion_rows], np.int64
    )
    if not len(own):
        raise PetsError("it was evaluated on none of these samples")
    num_excluded = None
    if trained_on is not None:
        num_excluded = int(trained_on[own].sum())
        own = own[~trained_on[own]]
    if not len(own):
        raise PetsError(f"it or this model was trained on all of the {num_excluded} samples")
    theirs = np.array([champion_rows[model.ids[row]] for row in own], np.int64)
    ours, others = model.scores[own], champion.scores[theirs]
    if not (np.isfinite(ours).all() and np.isfinite(others).all()):
        raise PetsError(f"a sample's {model.metric.name} is not finite")
    sign = 1 if model.metric.higher_is_better else -1
    gains = sign * (ours - others)
    improvement, p_value, test = _test(ours, others, sign, model.is_root)
    changes = _label_changes(model.labels, own, champion.labels, theirs)
    return Comparison(
        champion_url=champion.model_url,
        num_rows=len(own),
        num_excluded=num_excluded,
        metric=model.value(own),
        champion_metric=champion.value(theirs),
        num_better=int((gains > 0).sum()),
        num_worse=int((gains < 0).sum()),
        improvement=improvement,
        p_value=p_value,
        test=test,
        better=tuple(c for c in reversed(changes) if c.recall > c.champion_recall)[:_MAX_LISTED],
        worse=tuple(c for c in changes if c.recall < c.champion_recall)[:_MAX_LISTED],
        largest_drop=max(0.0, *(c.champion_recall - c.recall for c in changes), 0.0),
    )


def reduce_scores(scores: Floats, is_root: bool, axis: int = -1) -> Floats:
    """Return the metric of scores: the mean, or its square root."""
    mean: Floats = scores.mean(axis)
    return np.sqrt(mean) if is_root else mean


def _test(ours: Floats, others: Floats, sign: int, is_root: bool) -> tuple[Interval, float, str]:
    """Return the improvement with its 95% interval, the two-sided p-value, and the test's name."""
    if not is_root and np.isin((ours, others), (0.0, 1.0)).all():
        gains = sign * (ours - others)
        better, worse = int((gains > 0).sum()), int((gains < 0).sum())
        interval = _agresti_min(better, worse, len(ours))
        return interval, _mcnemar(better, worse), "McNemar's test"

    def improvement(a: Floats, b: Floats, axis: int = -1) -> Floats:
        return sign * (reduce_scores(a, is_root, axis) - reduce_scores(b, is_root, axis))

    value = float(improvement(ours, others))
    if len(ours) < 2 or np.array_equal(ours, others):
        return Interval(value=value, low=value, high=value), 1.0, "paired permutation test"
    interval = bootstrap_interval(improvement, ours, others)
    p_value = _permutation_p_value(ours, others, improvement, is_root)
    return interval, p_value, "paired permutation test"


def _permutation_p_value(
    ours: Floats, others: Floats, improvement: Callable[..., Any], is_root: bool
) -> float:
    """Return the two-sided p-value of a paired permutation test.

    Of many samples, the mean of the permuted differences is drawn from its normal approximation
    (Fisher, 1935; central limit theorem).
    """
    if len(ours) <= _MOST_PERMUTED:
        from scipy.stats import permutation_test

        tested = permutation_test(
            (ours, others), improvement, permutation_type="samples", vectorized=True,
            batch=max(1, _BLOCK // len(ours)), n_resamples=_RESAMPLES, rng=np.random.default_rng(0),
        )  # fmt: skip
        return float(tested.pvalue)
    half, middle = (ours - others) / 2, (ours + others) / 2
    spread = np.sqrt(np.square(half).sum()) / len(half)
    permuted = np.random.default_rng(0).normal(0, spread, _RESAMPLES)
    means = np.stack([middle.mean() + permuted, middle.mean() - permuted])
    one, other = np.sqrt(np.maximum(means, 0)) if is_root else means
    observed = abs(float(improvement(ours, others)))
    return float((1 + (np.abs(one - other) >= observed).sum()) / (1 + _RESAMPLES))


def _mcnemar(better: int, worse: int) -> float:
    if not better + worse:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(worse, better + worse, 0.5).pvalue)


def _agresti_min(better: int, worse: int, total: int) -> Interval:
    """Return the difference of two paired proportions with its adjusted Wald interval."""
    from scipy.stats import norm

    value = (better - worse) / total
    # Add half a sample to each of the four cells.
    first, second, size = better + 0.5, worse + 0.5, total + 2
    centre = (first - second) / size
    spread = norm.ppf(0.975) * np.sqrt((first + second) / size - centre**2) / np.sqrt(size)
    low, high = max(-1.0, float(centre - spread)), min(1.0, float(centre + spread))
    return Interval(value=value, low=low, high=high)


def _label_changes(
    model: Labels | None,
    own: NDArray[np.int64],
    champion: Labels | None,
    theirs: NDArray[np.int64],
) -> list[LabelChange]:
    """Return the recall of each label in both models, the largest drop first."""
    if model is None or champion is None:
        return []
    support, found = model.supports(own)
    champion_support, champion_found = champion.supports(theirs)
    changes = [
        LabelChange(
            name=name,
            support=int(support[i]),
            champion_recall=float(champion_found[i] / champion_support[i]),
            recall=float(found[i] / support[i]),
        )
        for i, name in enumerate(model.names)
        if support[i] and champion_support[i]
    ]
    return sorted(changes, key=lambda change: change.recall - change.champion_recall)
