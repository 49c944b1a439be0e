"""What predictions of tags come to, as numbers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pets_core.records.evaluation import Share
from pets_core.tags.records import TagMeasures

__all__ = [
    "accuracy_multi",
    "exact_match",
    "f1_scores",
    "mean_average_precision",
    "measure_tags",
    "micro_f1_interval",
]

_RESAMPLES, _ENDS = 2000, (0.025, 0.975)

Flags = NDArray[np.bool_]


def accuracy_multi(targets: Flags, given: Flags) -> float:
    """Share of the pairs of a photo and a tag that are right, as fastai's function of that name.

    Where photos have few of many tags it is high for one who gives none: look at F1, too.
    """
    return float((targets == given).mean())


def exact_match(targets: Flags, given: Flags) -> float:
    """Share of the photos that are given all of their tags and no other."""
    return float((targets == given).all(1).mean())


def f1_scores(targets: Flags, given: Flags) -> tuple[float, float, NDArray[np.float64]]:
    """F1 over all pairs (micro), its mean over tags that photos have (macro), and of each tag.

    Args:
        targets: Which tags each photo has, (N, C).
        given: Which it is given, (N, C).

    Returns:
        Micro, macro, and (C,), where a tag that no photo has and none is given is 0. Macro is 0
        where no photo has a tag.
    """
    right = (targets & given).sum(0)
    either = targets.sum(0) + given.sum(0)
    each = 2 * right / np.maximum(either, 1)
    micro = 2 * right.sum() / max(int(either.sum()), 1)
    has_photos = targets.any(0)
    macro = float(each[has_photos].mean()) if has_photos.any() else 0.0
    return float(micro), macro, each


def micro_f1_interval(targets: Flags, given: Flags, *, seed: int = 0) -> Share:
    """Micro-averaged F1 with its percentile bootstrap interval.

    Photos are drawn with replacement, each with all of its tags (Efron and Tibshirani 1993).

    Args:
        targets: (N, C), N at least 1.
        given: (N, C).
        seed: Of the resamples.
    """
    parts = np.stack([(targets & given).sum(1), targets.sum(1) + given.sum(1)], axis=1)
    random, count = np.random.default_rng(seed), len(parts)
    drawn = [parts[random.integers(0, count, count)].sum(0) for _ in range(_RESAMPLES)]
    right, either = np.array(drawn, np.float64).T
    low, high = np.quantile(2 * right / np.maximum(either, 1), _ENDS)
    return Share(value=f1_scores(targets, given)[0], low=float(low), high=float(high))


def measure_tags(
    tags: tuple[str, ...],
    targets: Flags,
    probabilities: NDArray[np.float32],
    given: Flags,
    thresholds: tuple[float, ...],
) -> tuple[TagMeasures, ...]:
    """Judge each tag, in index order.

    Average precision is the area below the curve of precision over recall, in steps, which asks for
    no threshold (scikit-learn's `average_precision_score`).

    Args:
        tags: C names.
        targets: Which tags each photo has, (N, C).
        probabilities: (N, C).
        given: Which tags each photo is given, (N, C).
        thresholds: Of each tag, C.
    """
    # Whoever only reads thresholds does not wait for it.
    from sklearn.metrics import average_precision_score

    f1 = f1_scores(targets, given)[2]
    right, support, said = (targets & given).sum(0), targets.sum(0), given.sum(0)
    return tuple(
        TagMeasures(
            name=tag,
            support=int(support[i]),
            average_precision=(
                float(average_precision_score(targets[:, i], probabilities[:, i]))
                if support[i]
                else None
            ),
            precision=float(right[i] / said[i]) if said[i] else None,
            recall=float(right[i] / support[i]) if support[i] else None,
            f1=float(f1[i]) if support[i] else None,
            threshold=thresholds[i],
        )
        for i, tag in enumerate(tags)
    )


def mean_average_precision(measures: tuple[TagMeasures, ...]) -> float | None:
    """The mean over the tags that photos have (mAP); None where no photo has any."""
    known = [m.average_precision for m in measures if m.average_precision is not None]
    return float(np.mean(known)) if known else None
