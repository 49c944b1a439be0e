"""Metrics of predicted numbers; pure functions of arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pets_core.records.dataset import NumberInfo

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["baseline_of", "have_one_unit", "number_table", "rmse", "standard_errors"]

Numbers = NDArray[np.float32] | NDArray[np.float64]
Floats = NDArray[np.float64]


def number_table(infos: Sequence[NumberInfo], targets: Numbers, predicted: Numbers) -> pd.DataFrame:
    """Return the errors of each number, and those of always predicting the training photos' mean.

    Args:
        infos: D.
        targets: (N, D), of one photo at least.
        predicted: (N, D).

    Returns:
        Columns name, unit, mae, baseline_mae, rmse, baseline_rmse, bias (mean of predicted less
        actual), r2 (NaN where all photos are alike), median and p95 of the absolute errors.
    """
    import pandas as pd

    actual, said = targets.astype(np.float64), predicted.astype(np.float64)
    return pd.DataFrame([_row(info, actual[:, i], said[:, i]) for i, info in enumerate(infos)])


def _row(info: NumberInfo, actual: Floats, predicted: Floats) -> dict[str, object]:
    from sklearn.metrics import mean_absolute_error, r2_score

    errors, of_mean = predicted - actual, info.mean - actual
    median, p95 = np.quantile(np.abs(errors), (0.5, 0.95))
    return {
        "name": info.name,
        "unit": info.unit,
        "mae": mean_absolute_error(actual, predicted),
        "baseline_mae": float(np.abs(of_mean).mean()),
        "rmse": rmse(errors),
        "baseline_rmse": rmse(of_mean),
        "bias": float(errors.mean()),
        "r2": r2_score(actual, predicted) if np.ptp(actual) > 0 else np.nan,
        "median": float(median),
        "p95": float(p95),
    }


def rmse(errors: Numbers) -> float:
    """Return the root of the mean squared error, whatever the shape."""
    return float(np.sqrt(np.mean(np.square(errors, dtype=np.float64))))


def have_one_unit(infos: Sequence[NumberInfo]) -> bool:
    """Return whether errors of different numbers can be added."""
    return len(infos) == 1 or len({info.unit or info.name for info in infos}) == 1


def baseline_of(infos: Sequence[NumberInfo], num_rows: int) -> Floats:
    """Return what one predicts who always predicts the training photos' mean, (num_rows, D)."""
    return np.tile(np.array([info.mean for info in infos], np.float64), (num_rows, 1))


def standard_errors(infos: Sequence[NumberInfo], targets: Numbers, predicted: Numbers) -> Floats:
    """Return errors in standard deviations of the training photos, (N, D)."""
    spread = np.array([info.std if info.std > 0 else 1.0 for info in infos])
    errors: Floats = (predicted.astype(np.float64) - targets) / spread
    return errors
