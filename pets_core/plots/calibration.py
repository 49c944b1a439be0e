"""The reliability diagram."""

from __future__ import annotations

import numpy as np
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from pets_core.plots.style import BLUE, GREY, RED, Floats, new_figure, png, tidy

__all__ = ["reliability_diagram"]


def reliability_diagram(counts: NDArray[np.int64], confidence: Floats, accuracy: Floats) -> bytes:
    """Draw how often a model is right against how sure it is (Guo and others 2017).

    Args:
        counts: Photos in each of M bins of equal width, (M,).
        confidence: Their mean confidence, NaN in an empty bin, (M,).
        accuracy: Share of them that was right, NaN in an empty bin, (M,).

    Returns:
        A PNG of about 640 x 720 pixels: bars above photos a bin.
    """
    figure = new_figure(5.8, 6.4, dpi=112)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1])
    width = 1 / max(len(counts), 1)
    centres = (np.arange(len(counts)) + 0.5) * width
    right = np.nan_to_num(accuracy)
    top.bar(centres, right, width * 0.94, color=BLUE, label="share that was right")
    # What is missing to, or above, the model's own word.
    known = counts > 0
    gap = np.where(known, confidence - accuracy, 0.0)
    top.bar(centres, gap, width * 0.94, bottom=right, color=RED, alpha=0.35, hatch="//",
            edgecolor=RED, linewidth=0, label="gap to the model's confidence")  # fmt: skip
    top.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1)
    top.set(ylabel="right", ylim=(0, 1), xlim=(0, 1))
    top.legend(loc="upper left", frameon=False, fontsize=9)
    bottom.bar(centres, counts, width * 0.94, color=GREY)
    bottom.set(xlabel="confidence", ylabel="photos")
    for axes in (top, bottom):
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        tidy(axes)
    top.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    return png(figure)
