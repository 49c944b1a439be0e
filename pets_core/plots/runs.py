"""Training curves of several runs over each other."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib import colormaps
from matplotlib.ticker import MaxNLocator

from pets_core.plots.style import format_metric, new_figure, plain, png, tidy
from pets_core.records.training import EpochMetrics

__all__ = ["compared_curves"]

_COLOURS = colormaps["tab10"].colors  # type: ignore[attr-defined]


def compared_curves(runs: Sequence[tuple[str, Sequence[EpochMetrics]]]) -> bytes:
    """Plot losses and validation metric of each run over its epochs.

    Args:
        runs: Name and epochs of each run. A probe, which has no epoch, is at 0.

    Returns:
        A PNG of about 1100 x 450 pixels.
    """
    figure = new_figure(10.0, 4.2, dpi=112)
    left, right = figure.subplots(1, 2)
    metric = next((epoch.metric for _, epochs in runs for epoch in epochs), None)
    for number, (name, epochs) in enumerate(runs):
        colour = _COLOURS[number % len(_COLOURS)]
        positions = [epoch.epoch + 1 for epoch in epochs]
        style = {"color": colour, "linewidth": 2.0, "marker": "o", "markersize": 4}
        valid = [(x, e) for x, e in zip(positions, epochs, strict=True) if e.valid_loss is not None]
        left.plot(positions, [e.train_loss for e in epochs], **style | {"linestyle": ":"})
        left.plot(
            [x for x, _ in valid], [e.valid_loss for _, e in valid], label=plain(name), **style
        )
        right.plot([x for x, _ in valid], [e.valid_metric for _, e in valid], **style)
    left.set(xlabel="Epoch", ylabel="Loss (dotted: training, solid: validation)")
    right.set(xlabel="Epoch", ylabel=f"Validation {metric.name}" if metric else "Validation metric")
    if metric:
        format_metric(right.yaxis, metric)
    left.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        tidy(axes)
    return png(figure)
