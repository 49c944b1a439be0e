"""Metrics of predicted numbers; pure functions of arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pets_core.records.dataset import NumberInfo

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["have_one_unit", "mean_baseline", "number_table", "rmse", "standard_errors"]

Numbers = NDArray[np.float32] | NDArray[np.float64]
Floats = NDArray[np.float64]


def number_table(infos: Sequence[NumberInfo], targets: Numbers, predicted: Numbers) -> pd.DataFrame:
    """Return the errors of each number and of the baseline, the mean of the training photos.

    Args:
        infos: D numbers.
        targets: (N, D), N at least 1.
        predicted: (N, D).

    Returns:
        Columns name, unit, mae, baseline_mae, rmse, baseline_rmse, bias (mean of predicted -
        actual), r2 (NaN if all targets are equal), median and p95 of the absolute errors.
    """
    import pandas as pd

    y, y_pred = targets.astype(np.float64), predicted.astype(np.float64)
    return pd.DataFrame([_row(info, y[:, i], y_pred[:, i]) for i, info in enumerate(infos)])


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
    """Return the root mean squared error over all elements."""
    return float(np.sqrt(np.mean(np.square(errors, dtype=np.float64))))


def have_one_unit(infos: Sequence[NumberInfo]) -> bool:
    """Return whether all numbers have the same unit, so that their errors can be averaged."""
    return len(infos) == 1 or len({info.unit or info.name for info in infos}) == 1


def mean_baseline(infos: Sequence[NumberInfo], num_rows: int) -> Floats:
    """Return baseline predictions: the mean of the training photos, (num_rows, D)."""
    return np.tile(np.array([info.mean for info in infos], np.float64), (num_rows, 1))


def standard_errors(infos: Sequence[NumberInfo], targets: Numbers, predicted: Numbers) -> Floats:
    """Return errors in standard deviations of the training photos, (N, D)."""
    spread = np.array([info.std if info.std > 0 else 1.0 for info in infos])
    errors: Floats = (predicted.astype(np.float64) - targets) / spread
    return errors
