"""Reliability diagram."""

from __future__ import annotations

import numpy as np
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from pets_core.plots.style import BLUE, GREY, RED, Floats, new_figure, png, tidy

__all__ = ["reliability_diagram"]


def reliability_diagram(counts: NDArray[np.int64], confidence: Floats, accuracy: Floats) -> bytes:
    """Plot accuracy over confidence in M bins of equal width (Guo and others 2017).

    Args:
        counts: Number of photos in each bin, (M,).
        confidence: Mean confidence of each bin, NaN if empty, (M,).
        accuracy: Accuracy of each bin, NaN if empty, (M,).

    Returns:
        A PNG of about 640 x 720 pixels: accuracy bars above a histogram of the photos.
    """
    figure = new_figure(5.8, 6.4, dpi=112)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1])
    width = 1 / max(len(counts), 1)
    centres = (np.arange(len(counts)) + 0.5) * width
    heights = np.nan_to_num(accuracy)
    top.bar(centres, heights, width * 0.94, color=BLUE, label="Accuracy")
    gap = np.where(counts > 0, confidence - accuracy, 0.0)
    top.bar(centres, np.maximum(gap, 0), width * 0.94, bottom=heights, color=RED, alpha=0.35,
            hatch="//", edgecolor=RED, linewidth=0, label="Confidence too high by")  # fmt: skip
    top.bar(centres, np.minimum(gap, 0), width * 0.94, bottom=heights, color=BLUE, hatch="\\\\",
            edgecolor="white", linewidth=0, label="Confidence too low by")  # fmt: skip
    top.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1)
    top.set(ylabel="Accuracy", ylim=(0, 1), xlim=(0, 1))
    top.legend(loc="upper left", frameon=False, fontsize=9)
    bottom.bar(centres, counts, width * 0.94, color=GREY)
    bottom.set(xlabel="Confidence", ylabel="Photos")
    for axes in (top, bottom):
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        tidy(axes)
    top.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    return png(figure)
