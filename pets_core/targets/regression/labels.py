"""Photos whose numbers are probably wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pets_core.evaluation.predictions import Predictions

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["number_issues"]

_SHARE_OF_MEDIAN = 0.05
"""As cleanlab's Datalab: an issue has a quality below this share of the median."""


def number_issues(validation: Predictions) -> pd.DataFrame:
    """Find photos whose numbers the model, which was not trained on them, contradicts.

    The quality of each number is that of cleanlab's `regression` (Zhou and others 2023,
    arXiv:2305.16583), from residuals that are outliers.

    Args:
        validation: Predictions of photos that were held out, (N, D).

    Returns:
        A row a number, the likeliest error first: id, number, actual, predicted, and quality, 0 to
        1.
    """
    import pandas as pd

    names = [info.name for info in validation.info.numbers]
    rows = [row for place, name in enumerate(names) for row in _issues_of(validation, place, name)]
    columns = ["id", "number", "actual", "predicted", "quality"]
    return pd.DataFrame(rows, columns=columns).sort_values(
        "quality", kind="stable", ignore_index=True
    )


def _issues_of(
    validation: Predictions, place: int, name: str
) -> list[tuple[str, str, float, float, float]]:
    actual = validation.targets[:, place].astype(np.float64)
    predicted = validation.outputs[:, place].astype(np.float64)
    # Outliers of residuals need neighbours to be told from.
    if len(actual) < 20 or np.ptp(actual - predicted) == 0:
        return []
    from cleanlab.regression.rank import get_label_quality_scores

    quality = get_label_quality_scores(actual, predicted)
    found = np.flatnonzero(quality < _SHARE_OF_MEDIAN * np.median(quality))
    return [(validation.ids[row], name, actual[row], predicted[row], quality[row]) for row in found]
