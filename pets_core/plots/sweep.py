"""Plot of the trials of a sweep."""

from __future__ import annotations

from collections.abc import Sequence

from pets_core.plots.style import (
    BLUE,
    GREY,
    ORANGE,
    RED,
    format_metric,
    new_figure,
    note,
    plain,
    png,
    tidy,
)
from pets_core.records.training import Trial

__all__ = ["sweep_trials"]

_COLOURS = (BLUE, ORANGE, RED, "#3a8f5c", "#7a5ab0", GREY)


def sweep_trials(trials: Sequence[Trial]) -> bytes:
    """Plot the validation metric of trials over learning rate, one colour per backbone.

    Args:
        trials: Finished trials, best first; a circle marks the best.

    Returns:
        A PNG of about 1000 x 560 pixels.
    """
    figure = new_figure(9.0, 5.0, dpi=112)
    axes = figure.subplots()
    names = list(dict.fromkeys(trial.backbone for trial in trials))
    for i, name in enumerate(names):
        own = [trial for trial in trials if trial.backbone == name]
        # Further backbones share the last colour.
        axes.scatter(
            [trial.base_lr for trial in own], [trial.value or 0.0 for trial in own],
            color=_COLOURS[min(i, len(_COLOURS) - 1)], s=36, label=plain(name),
        )  # fmt: skip
    for trial in trials[:1]:
        axes.scatter(
            [trial.base_lr], [trial.value or 0.0], s=160, facecolors="none", edgecolors=RED
        )
    axes.set_xscale("log")
    axes.set(xlabel="Peak learning rate of the head")
    if trials:
        metric = trials[0].metric
        axes.set_ylabel(f"Validation {metric.name}")
        format_metric(axes.yaxis, metric)
    if names:
        axes.legend(loc="best", frameon=False, fontsize=9)
    else:
        note(axes, "No trial finished")
    tidy(axes)
    return png(figure)
