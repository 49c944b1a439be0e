"""Plots of the learning-rate range test and of training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from pets_core.plots.style import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    RED,
    Floats,
    format_metric,
    new_figure,
    note,
    png,
    tidy,
)
from pets_core.records.training import EpochMetrics

__all__ = ["lr_curve", "ridge_curve", "training_curves"]

_PHASE_SHADES = {"frozen": "#e4edf7", "unfrozen": "#fdf3e3"}
_MAX_WINDOW = 101
_DECADES_BELOW_PEAK = 2.5


def lr_curve(
    rates: Floats,
    losses: Floats,
    smoothed: Floats,
    suggestions: Mapping[str, float],
    chosen: str,
) -> bytes:
    """Plot a learning-rate range test with its suggestions.

    Args:
        rates: Learning rate of each step, rising, shape (n,).
        losses: Loss of each step, shape (n,).
        smoothed: Running mean of the losses, shape (n,).
        suggestions: Learning rates by name: minimum, steepest, valley, slide, limited.
        chosen: Name of the suggestion that training uses.

    Returns:
        A PNG of about 1000 x 560 pixels.
    """
    figure = new_figure(9.0, 5.0, dpi=112)
    axes = figure.subplots()
    axes.plot(rates, losses, color=BLUE, alpha=0.28, linewidth=1, label="Loss of the step")
    axes.plot(rates, smoothed, color=BLUE, linewidth=2.2, label="Smoothed")
    axes.set_xscale("log")
    axes.set(xlabel="Learning rate", ylabel="Loss", ylim=_lr_limits(losses, smoothed))
    if len(rates):
        _mark_suggestions(axes, rates, smoothed, suggestions, chosen)
        axes.legend(loc="lower left", frameon=False, fontsize=9)
    else:
        note(axes, "No steps recorded")
    tidy(axes)
    return png(figure)


def training_curves(steps: Sequence[Mapping[str, Any]], epochs: Sequence[EpochMetrics]) -> bytes:
    """Plot loss, validation metric and learning rates over optimizer steps.

    Args:
        steps: One row per optimizer step: `step` from 0, `phase`, `epoch`, `loss`, and
            `lr_group_<n>` of each trained layer group; missing or None for a frozen group.
        epochs: Losses and metric of each epoch.

    Returns:
        A PNG of about 1000 x 880 pixels, without the metric panel if there is no validation. The
        ends of the schedules, where rates approach 0, are below the axis range.
    """
    heights = {"loss": 3.0, "metric": 1.4, "rate": 2.2}
    if all(epoch.valid_metric is None for epoch in epochs):
        del heights["metric"]
    figure = new_figure(9.0, 1.1 * sum(heights.values()) + 0.6, dpi=112)
    panels = figure.subplots(
        len(heights), 1, sharex=True, squeeze=False, height_ratios=list(heights.values())
    )[:, 0]
    axes = dict(zip(heights, panels, strict=True))
    # Step s is drawn at s + 1, so that an epoch's marker is at the end of its last step.
    positions = np.array([row["step"] + 1 for row in steps], dtype=np.float64)
    ends = {int(row["epoch"]): float(row["step"] + 1) for row in steps}
    _draw_losses(axes["loss"], positions, steps, epochs, ends)
    if "metric" in axes:
        _draw_metric(axes["metric"], epochs, ends)
    _draw_rates(axes["rate"], positions, steps)
    for panel in panels:
        _shade_phases(panel, steps, ends, named=panel is panels[0])
        tidy(panel)
    panels[-1].set_xlabel("Optimizer step")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[-1].set_xlim(0, positions.max(initial=1.0) * 1.05)
    figure.align_ylabels()
    return png(figure)


def ridge_curve(tried: Sequence[tuple[float, float]], chosen: float) -> bytes:
    """Plot the loss of a linear probe over its L2 penalty.

    Args:
        tried: Penalties with their losses.
        chosen: Penalty of the probe.

    Returns:
        A PNG of about 1000 x 450 pixels.
    """
    figure = new_figure(9.0, 4.0, dpi=112)
    axes = figure.subplots()
    ridges, losses = zip(*sorted(tried), strict=True)
    axes.plot(ridges, losses, color=BLUE, marker="o", linewidth=2)
    axes.plot(chosen, dict(tried)[chosen], color=RED, marker="*", markersize=17, linestyle="",
              label=f"Chosen: {chosen:.2g}", zorder=5)  # fmt: skip
    axes.set_xscale("log")
    axes.set(xlabel="L2 penalty of the linear probe", ylabel="Loss on photos held out")
    axes.legend(loc="upper center", frameon=False)
    tidy(axes)
    return png(figure)


def _lr_limits(losses: Floats, smoothed: Floats) -> tuple[float, float]:
    """Return y limits that fit both curves and the labels above them.

    Single spikes and the end of a loss that diverges are above the limits.
    """
    if not len(losses):
        return 0.0, 1.0
    low = float(min(np.percentile(losses, 2), smoothed.min()))
    high = float(max(np.percentile(losses, 98), smoothed.max()))
    before = float(smoothed[: int(smoothed.argmin()) + 1].max())
    # If the loss only rises, there is no fall to show: keep the whole curve.
    if before > low:
        high = max(min(high, before + 0.5 * (before - low)), before)
    span = (high - low) or 1.0
    return low - 0.06 * span, high + 0.42 * span


def _mark_suggestions(
    axes: Axes,
    rates: Floats,
    smoothed: Floats,
    suggestions: Mapping[str, float],
    chosen: str,
) -> None:
    # Labels descend from left to right, so that no line crosses the label of another suggestion.
    for i, (name, rate) in enumerate(sorted(suggestions.items(), key=lambda item: item[1])):
        best = name == chosen
        colour = RED if best else INK
        loss = float(np.interp(np.log(rate), np.log(rates), smoothed))
        low, high = axes.get_ylim()
        height = high - (0.03 + 0.075 * i) * (high - low)
        axes.plot([rate, rate], [loss, height], color=colour, linewidth=1.4 if best else 0.8,
                  linestyle="-" if best else ":", zorder=3)  # fmt: skip
        axes.plot(rate, loss, marker="*" if best else "o", markersize=17 if best else 7,
                  color=colour, markeredgecolor="white", zorder=6 if best else 5)  # fmt: skip
        near_end = math.log(rates[-1] / rate) < 0.25 * math.log(rates[-1] / rates[0])
        axes.annotate(
            f"{name}  {rate:.2e}" + ("  (chosen)" if best else ""),
            (rate, height),
            (-5 if near_end else 5, 0),
            textcoords="offset points",
            ha="right" if near_end else "left",
            va="center",
            color=colour,
            fontsize=10 if best else 9,
            fontweight="bold" if best else "normal",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0},
            zorder=4,
        )


def _column(steps: Sequence[Mapping[str, Any]], key: str) -> Floats:
    """Return one value per step, NaN if missing; shape (n,)."""
    values = (row.get(key) for row in steps)
    return np.array([math.nan if value is None else float(value) for value in values])


def _centred_mean(losses: Floats) -> Floats:
    """Return the mean of a window around each step; unlike a running mean it does not lag."""
    window = np.ones(min(max(5, len(losses) // 25), _MAX_WINDOW, len(losses)) or 1)
    if not len(losses):
        return losses
    sums = np.convolve(losses, window, mode="same")
    sizes = np.convolve(np.ones_like(losses), window, mode="same")
    return np.asarray(sums / sizes, dtype=np.float64)


def _draw_losses(
    axes: Axes,
    positions: Floats,
    steps: Sequence[Mapping[str, Any]],
    epochs: Sequence[EpochMetrics],
    ends: Mapping[int, float],
) -> None:
    losses = _column(steps, "loss")
    axes.plot(positions, losses, color=BLUE, alpha=0.25, linewidth=0.9, label="Step")
    axes.plot(positions, _centred_mean(losses), color=BLUE, linewidth=1.8, label="Smoothed")
    for label, colour, marker, values in (
        ("Train, epoch", BLUE, "o", [epoch.train_loss for epoch in epochs]),
        ("Valid, epoch", ORANGE, "D", [epoch.valid_loss for epoch in epochs]),
    ):
        at = [(ends[e.epoch], v) for e, v in zip(epochs, values, strict=True)
              if v is not None and e.epoch in ends]  # fmt: skip
        if at:
            axes.plot(*zip(*at, strict=True), color=colour, marker=marker, markersize=7,
                      markeredgecolor="white", linewidth=1, linestyle="--", label=label,
                      zorder=5)  # fmt: skip
    axes.set_ylabel("Loss")
    axes.set_ylim(bottom=0)
    if len(positions):
        axes.legend(loc="upper right", ncols=2, frameon=False, fontsize=9)
    else:
        note(axes, "No steps recorded")


def _draw_metric(axes: Axes, epochs: Sequence[EpochMetrics], ends: Mapping[int, float]) -> None:
    shown = [epoch for epoch in epochs if epoch.valid_metric is not None and epoch.epoch in ends]
    at = [(ends[epoch.epoch], epoch.valid_metric or 0.0) for epoch in shown]
    if not shown:
        return
    axes.plot(*zip(*at, strict=True), color=ORANGE, marker="D", markersize=6, linewidth=1.4,
              markeredgecolor="white", clip_on=False, zorder=5)  # fmt: skip
    # Above 12 epochs only the last value is annotated, because the texts would overlap.
    for epoch, point in list(zip(shown, at, strict=True))[0 if len(at) <= 12 else -1 :]:
        axes.annotate(epoch.metric_text, point, (5, 4), textcoords="offset points",
                      color=ORANGE, fontsize=9, fontweight="bold")  # fmt: skip
    metric = shown[0].metric
    axes.set_ylabel(f"Valid {metric.name}")
    top = max(value for _, value in at) * 1.45 or 0.01
    axes.set_ylim(0, top)
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    format_metric(axes.yaxis, metric, decimals=0 if top > 0.05 else 1)


def _draw_rates(axes: Axes, positions: Floats, steps: Sequence[Mapping[str, Any]]) -> None:
    prefix = "lr_group_"
    groups = sorted({int(k.removeprefix(prefix)) for row in steps for k in row if prefix in k})
    colours = colormaps["viridis"](np.linspace(0.85, 0.15, max(len(groups), 1)))
    phases = [str(row["phase"]) for row in steps]
    starts = [i for i in range(1, len(phases)) if phases[i] != phases[i - 1]]
    peaks = []
    for group, colour in zip(groups, colours, strict=False):
        rates = _column(steps, f"{prefix}{group}")
        peaks.append(float(np.nanmax(rates, initial=0.0)))
        # Each phase has its own schedule: NaN breaks the line between two phases.
        axes.plot(np.insert(positions, starts, np.nan), np.insert(rates, starts, np.nan),
                  color=colour, linewidth=1.8,
                  label=f"Group {group}" + (" (head)" if group == groups[-1] else ""))  # fmt: skip
    axes.set_yscale("log", nonpositive="mask")
    axes.set_ylabel("Learning rate")
    if any(peak > 0 for peak in peaks):
        lowest = min(peak for peak in peaks if peak > 0)
        axes.set_ylim(lowest / 10**_DECADES_BELOW_PEAK, max(peaks) * 2)
    if 0 < len(groups) <= 8:
        axes.legend(loc="lower center", ncols=4, frameon=False, fontsize=9)


def _shade_phases(
    axes: Axes, steps: Sequence[Mapping[str, Any]], ends: Mapping[int, float], named: bool
) -> None:
    for end in sorted(ends.values())[:-1]:
        axes.axvline(end, color="#b9c1ca", linewidth=0.8, linestyle=(0, (2, 3)), zorder=1)
    for phase in dict.fromkeys(str(row["phase"]) for row in steps):
        rows = [row["step"] for row in steps if row["phase"] == phase]
        axes.axvspan(min(rows), max(rows) + 1, color=_PHASE_SHADES.get(phase, "white"),
                     linewidth=0, zorder=0)  # fmt: skip
        if named:
            # The name of a narrow phase is drawn one line higher, so that it does not overlap.
            lift = 4 if len(rows) > 0.08 * len(steps) else 17
            axes.annotate(phase, (min(rows), 1.0), (3, lift), xycoords=axes.get_xaxis_transform(),
                          textcoords="offset points", color=GREY, fontsize=9.5,
                          fontweight="bold", annotation_clip=False)  # fmt: skip
