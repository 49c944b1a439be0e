"""Metrics of predicted tags."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pets_core.evaluation.intervals import bootstrap_interval
from pets_core.records.evaluation import Interval

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "accuracy_multi",
    "exact_match",
    "f1_scores",
    "micro_f1_interval",
    "photo_f1",
    "tag_table",
]

Flags = NDArray[np.bool_]


def accuracy_multi(targets: Flags, predicted: Flags) -> float:
    """Return the share of correct photo-tag pairs, as fastai's `accuracy_multi`.

    If photos have few of many tags, predicting no tags scores high: compare with F1.
    """
    return float((targets == predicted).mean())


def exact_match(targets: Flags, predicted: Flags) -> float:
    """Return the share of photos whose predicted tags all match (subset accuracy)."""
    return float((targets == predicted).all(1).mean())


def f1_scores(targets: Flags, predicted: Flags) -> tuple[float, float, NDArray[np.float64]]:
    """Return micro-averaged, macro-averaged and per-tag F1.

    Args:
        targets: Actual tags of each photo, (N, C).
        predicted: Predicted tags of each photo, (N, C).

    Returns:
        Micro F1; macro F1 over tags of at least one photo, or 0 if there are none; F1 of each tag,
        (C,), 0 for a tag neither actual nor predicted for any photo.
    """
    correct = (targets & predicted).sum(0)
    total = targets.sum(0) + predicted.sum(0)
    each = 2 * correct / np.maximum(total, 1)
    micro = 2 * correct.sum() / max(int(total.sum()), 1)
    has_photos = targets.any(0)
    macro = float(each[has_photos].mean()) if has_photos.any() else 0.0
    return float(micro), macro, each


def photo_f1(targets: Flags, predicted: Flags) -> NDArray[np.float64]:
    """Return the F1 of each photo's tags, (N,), as scikit-learn's average="samples".

    A photo without actual and predicted tags scores 1.
    """
    correct = (targets & predicted).sum(1)
    total = targets.sum(1) + predicted.sum(1)
    scores: NDArray[np.float64] = np.where(total == 0, 1.0, 2 * correct / np.maximum(total, 1))
    return scores


def micro_f1_interval(targets: Flags, predicted: Flags) -> Interval:
    """Return micro-averaged F1 with its bootstrap interval over photos.

    Args:
        targets: (N, C), N at least 1.
        predicted: (N, C).
    """

    def f1(correct: NDArray[Any], total: NDArray[Any], axis: int = -1) -> NDArray[Any]:
        ratio: NDArray[Any] = 2 * correct.sum(axis) / np.maximum(total.sum(axis), 1)
        return ratio

    return bootstrap_interval(f1, (targets & predicted).sum(1), targets.sum(1) + predicted.sum(1))


def tag_table(
    tags: Sequence[str],
    targets: Flags,
    probabilities: NDArray[np.float32],
    predicted: Flags,
    thresholds: Sequence[float],
) -> pd.DataFrame:
    """Return the metrics of each tag, lowest F1 first.

    Average precision is the area under the precision-recall curve, independent of the threshold
    (scikit-learn's `average_precision_score`).

    Args:
        tags: C names.
        targets: Actual tags of each photo, (N, C).
        probabilities: (N, C).
        predicted: Predicted tags of each photo, (N, C).
        thresholds: Threshold of each tag, C.

    Returns:
        Columns name, support, average_precision, precision, recall, f1, threshold. Undefined
        metrics are NaN; tags without photos come last.
    """
    import pandas as pd
    from sklearn.metrics import average_precision_score

    f1 = f1_scores(targets, predicted)[2]
    correct, support = (targets & predicted).sum(0), targets.sum(0)
    has_photos = support > 0
    average_precisions = [
        float(average_precision_score(targets[:, i], probabilities[:, i])) if known else np.nan
        for i, known in enumerate(has_photos)
    ]
    with np.errstate(invalid="ignore"):
        table = pd.DataFrame(
            {
                "name": list(tags),
                "support": support,
                "average_precision": average_precisions,
                "precision": correct / predicted.sum(0),
                "recall": correct / support,
                "f1": np.where(has_photos, f1, np.nan),
                "threshold": thresholds,
            }
        )
    return table.sort_values("f1", kind="stable", na_position="last", ignore_index=True)
