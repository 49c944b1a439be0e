"""Plot of metrics over the threshold of tags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.ticker import PercentFormatter

from pets_core.plots.style import BLUE, GREY, ORANGE, RED, new_figure, png, tidy

__all__ = ["threshold_curve"]

_COLOURS = (BLUE, RED, GREY)


def threshold_curve(
    thresholds: Sequence[float], scores: Mapping[str, Sequence[float]], chosen: Sequence[float]
) -> bytes:
    """Plot validation metrics over the threshold, and the chosen thresholds.

    Args:
        thresholds: The n thresholds.
        scores: Values of at most three metrics at each threshold, by name.
        chosen: Threshold of each tag. If all are equal, one vertical line is drawn, otherwise a
            mark per tag.

    Returns:
        A PNG of about 800 x 450 pixels.
    """
    figure = new_figure(7.2, 4.0, dpi=112)
    axes = figure.subplots()
    for (name, heights), colour in zip(scores.items(), _COLOURS, strict=False):
        axes.plot(thresholds, heights, color=colour, linewidth=1.8, label=name)
    values = np.unique(np.asarray(chosen))
    if len(values) == 1:
        axes.axvline(values[0], color=ORANGE, linewidth=1.4, linestyle=(0, (4, 3)),
                     label=f"Chosen: {values[0]:.2f}")  # fmt: skip
    else:
        axes.plot(chosen, np.full(len(chosen), 0.03), "|", color=ORANGE, markersize=14,
                  markeredgewidth=1.4, alpha=0.8, label="Chosen for a tag")  # fmt: skip
    axes.set(xlabel="Threshold", xlim=(0, 1), ylim=(0, 1.02))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.legend(frameon=False, fontsize=9, loc="best")
    tidy(axes)
    return png(figure)
