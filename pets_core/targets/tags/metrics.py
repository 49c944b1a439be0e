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


def photo_f1(targets: Flags, given: Flags) -> NDArray[np.float64]:
    """Return the F1 of each photo's tags, (N,), as scikit-learn's average="samples".

    A photo that has no tag and is given none has 1.
    """
    right = (targets & given).sum(1)
    either = targets.sum(1) + given.sum(1)
    scores: NDArray[np.float64] = np.where(either == 0, 1.0, 2 * right / np.maximum(either, 1))
    return scores


def micro_f1_interval(targets: Flags, given: Flags) -> Interval:
    """Return micro-averaged F1 with its bootstrap interval; photos keep their tags together.

    Args:
        targets: (N, C), N at least 1.
        given: (N, C).
    """

    def f1(right: NDArray[Any], either: NDArray[Any], axis: int = -1) -> NDArray[Any]:
        ratio: NDArray[Any] = 2 * right.sum(axis) / np.maximum(either.sum(axis), 1)
        return ratio

    return bootstrap_interval(f1, (targets & given).sum(1), targets.sum(1) + given.sum(1))


def tag_table(
    tags: Sequence[str],
    targets: Flags,
    probabilities: NDArray[np.float32],
    given: Flags,
    thresholds: Sequence[float],
) -> pd.DataFrame:
    """Return the metrics of each tag, lowest F1 first.

    Average precision is the area below the curve of precision over recall, in steps, whatever the
    threshold (scikit-learn's `average_precision_score`).

    Args:
        tags: C names.
        targets: Which tags each photo has, (N, C).
        probabilities: (N, C).
        given: Which tags each photo is given, (N, C).
        thresholds: Of each tag, C.

    Returns:
        Columns name, support, average_precision, precision, recall, f1, threshold. What cannot be
        computed without photos is NaN; tags without photos come last.
    """
    import pandas as pd
    from sklearn.metrics import average_precision_score

    f1 = f1_scores(targets, given)[2]
    right, support, num_given = (targets & given).sum(0), targets.sum(0), given.sum(0)
    has_photos = support > 0
    precisions = [
        float(average_precision_score(targets[:, i], probabilities[:, i])) if known else np.nan
        for i, known in enumerate(has_photos)
    ]
    with np.errstate(invalid="ignore"):
        table = pd.DataFrame(
            {
                "name": list(tags),
                "support": support,
                "average_precision": precisions,
                "precision": right / num_given,
                "recall": right / support,
                "f1": np.where(has_photos, f1, np.nan),
                "threshold": thresholds,
            }
        )
    return table.sort_values("f1", kind="stable", na_position="last", ignore_index=True)
