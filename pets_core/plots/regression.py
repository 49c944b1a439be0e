"""Predicted over actual numbers, and their residuals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from pets_core.plots.style import BLUE, GREY, INK, ORANGE, Floats, new_figure, png, shorten, tidy

__all__ = ["MAX_RESIDUALS", "residuals"]

MAX_RESIDUALS = 6
"""Maximum number of rows of a plot; only the first numbers are drawn."""
_MAX_POINTS = 3000
"""Photos above which a hexbin replaces points, which would hide each other."""
_MAX_NAME = 40


def residuals(
    labels: Sequence[str],
    units: Sequence[str],
    targets: NDArray[np.float32],
    predicted: NDArray[np.float32],
) -> bytes:
    """Plot predicted over actual values and a histogram of the residuals, one row per number.

    Args:
        labels: Names of the D numbers.
        units: Unit of each number; empty: none.
        targets: Actual values, (N, D), N at least 1.
        predicted: Predicted values, (N, D).

    Returns:
        A PNG of about 1000 x 400 pixels per row, with at most `MAX_RESIDUALS` rows.
    """
    count = min(len(labels), MAX_RESIDUALS)
    figure = new_figure(9.0, 3.4 * count, dpi=112)
    for row, (left, right) in enumerate(figure.subplots(count, 2, squeeze=False)):
        actual, output = targets[:, row].astype(np.float64), predicted[:, row].astype(np.float64)
        name, unit = labels[row], f" ({units[row]})" if units[row] else ""
        _draw_predictions(left, actual, output)
        _draw_histogram(right, output - actual)
        left.set_title(
            shorten(name, _MAX_NAME), loc="left", fontsize=11, color=INK, parse_math=False
        )
        for axes, x, y in (
            (left, f"Actual{unit}", f"Predicted{unit}"),
            (right, f"Predicted - actual{unit}", "Photos"),
        ):
            axes.set_xlabel(x, parse_math=False)
            axes.set_ylabel(y, parse_math=False)
            tidy(axes)
    return png(figure)


def _draw_predictions(axes: Axes, actual: Floats, predicted: Floats) -> None:
    """Draw predicted over actual values, and the diagonal of perfect predictions."""
    low, high = _padded(min(actual.min(), predicted.min()), max(actual.max(), predicted.max()))
    if len(actual) > _MAX_POINTS:
        axes.hexbin(actual, predicted, gridsize=48, extent=(low, high, low, high), bins="log",
                    mincnt=1, cmap="Blues", vmin=0.4, linewidths=0.1)  # fmt: skip
    else:
        alpha = float(np.clip(12 / np.sqrt(len(actual)), 0.25, 0.9))
        axes.scatter(actual, predicted, s=12, color=BLUE, alpha=alpha, linewidths=0)
    axes.plot((low, high), (low, high), color=ORANGE, linewidth=1.2, linestyle=(0, (4, 3)))
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)


def _draw_histogram(axes: Axes, errors: Floats) -> None:
    """Draw a histogram of the residuals, and their mean."""
    limit = float(np.abs(errors).max()) or 1.0
    bins = int(np.clip(np.sqrt(len(errors)), 10, 60))
    axes.hist(errors, bins=bins, range=(-limit, limit), color=BLUE)
    axes.axvline(0, color=GREY, linewidth=1)
    mean = float(errors.mean())
    axes.axvline(
        mean, color=ORANGE, linewidth=1.2, linestyle=(0, (4, 3)), label=f"mean {mean:+.3g}"
    )
    axes.legend(frameon=False, fontsize=9, loc="upper right")


def _padded(low: float, high: float) -> tuple[float, float]:
    pad = 0.04 * (high - low) or 0.5
    return low - pad, high + pad
