"""Probable errors in numeric targets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pets_core.evaluation.predictions import Predictions

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["number_issues"]

_SHARE_OF_MEDIAN = 0.05
"""An issue has a quality below this share of the median, as in cleanlab's Datalab."""


def number_issues(validation: Predictions) -> pd.DataFrame:
    """Return the numbers that are probably wrong.

    Their quality is the score of outlying residuals by `cleanlab.regression` (Zhou et al., 2023,
    arXiv:2305.16583).

    Args:
        validation: Predictions of the validation split, (N, D).

    Returns:
        One row per number, most probable error first: id, number, actual, predicted, and quality
        from 0 to 1.
    """
    import pandas as pd

    names = [info.name for info in validation.info.numbers]
    rows = [row for index, name in enumerate(names) for row in _issues_of(validation, index, name)]
    columns = ["id", "number", "actual", "predicted", "quality"]
    return pd.DataFrame(rows, columns=columns).sort_values(
        "quality", kind="stable", ignore_index=True
    )


def _issues_of(
    validation: Predictions, index: int, name: str
) -> list[tuple[str, str, float, float, float]]:
    actual = validation.targets[:, index].astype(np.float64)
    predicted = validation.outputs[:, index].astype(np.float64)
    # Outlier detection needs enough neighbours, and residuals that differ.
    if len(actual) < 20 or np.ptp(actual - predicted) == 0:
        return []
    from cleanlab.regression.rank import get_label_quality_scores

    quality = get_label_quality_scores(actual, predicted)
    found = np.flatnonzero(quality < _SHARE_OF_MEDIAN * np.median(quality))
    return [(validation.ids[row], name, actual[row], predicted[row], quality[row]) for row in found]
