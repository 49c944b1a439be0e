"""Plots as PNG bytes, small enough to travel inside a page or a Prefect artifact."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageOps

from pets_core.records import EpochMetrics

__all__ = ["confusion_matrix", "lr_curve", "training_curves"]

_BLUE, _ORANGE, _RED, _INK, _GREY = "#1b5e9e", "#d9730d", "#b3202a", "#1c2530", "#6b7785"
_PHASE_SHADES = {"frozen": "#e4edf7", "unfrozen": "#fdf3e3"}
_MAX_WINDOW = 101
_DECADES_BELOW_PEAK = 2.5
_MIN_SCALED_CLASSES, _MAX_LABELLED_CLASSES = 12, 60
_MAX_CELLS_A_SIDE = 500
_MAX_NAME = 28

_Floats = NDArray[np.float64]


def lr_curve(
    rates: _Floats,
    losses: _Floats,
    smoothed: _Floats,
    suggestions: Mapping[str, float],
    chosen: str,
) -> bytes:
    """Draw a learning-rate range test and what was read off it.

    Args:
        rates: Learning rate of each step, rising, shape (n,).
        losses: Loss of each step, shape (n,).
        smoothed: Running mean of the losses, shape (n,).
        suggestions: Rates by name: minimum, steepest, valley, slide.
        chosen: The name of the suggestion that training takes.

    Returns:
        A PNG of about 1000 x 560 pixels.
    """
    figure = _figure(9.0, 5.0, dpi=112)
    axes = figure.subplots()
    axes.plot(rates, losses, color=_BLUE, alpha=0.28, linewidth=1, label="loss of the step")
    axes.plot(rates, smoothed, color=_BLUE, linewidth=2.2, label="smoothed")
    axes.set_xscale("log")
    axes.set(xlabel="learning rate", ylabel="loss", ylim=_lr_limits(losses, smoothed))
    if len(rates):
        _mark_suggestions(axes, rates, smoothed, suggestions, chosen)
        axes.legend(loc="lower left", frameon=False, fontsize=9)
    else:
        _say(axes, "no steps were taken")
    _tidy(axes)
    return _png(figure)


def training_curves(steps: Sequence[Mapping[str, Any]], epochs: Sequence[EpochMetrics]) -> bytes:
    """Draw loss, validation error rate and learning rates over optimizer steps.

    Args:
        steps: A row for each optimizer step: `step` from 0, `phase`, `epoch`, `loss`, and
            `lr_group_<n>` of each layer group that learnt; a frozen group's is missing or None.
        epochs: What each epoch came to.

    Returns:
        A PNG of about 1000 x 880 pixels, one panel fewer where nothing was validated. The ends of
        the schedules, where rates fall to nothing, run off the panel.
    """
    heights = {"loss": 3.0, "error": 1.4, "rate": 2.2}
    if all(epoch.valid_error_rate is None for epoch in epochs):
        del heights["error"]
    figure = _figure(9.0, 1.1 * sum(heights.values()) + 0.6, dpi=112)
    panels = figure.subplots(
        len(heights), 1, sharex=True, squeeze=False, height_ratios=list(heights.values())
    )[:, 0]
    axes = dict(zip(heights, panels, strict=True))
    # Step s is drawn at s + 1, so that an epoch's mark stands where its last step was taken.
    taken = np.array([row["step"] + 1 for row in steps], dtype=np.float64)
    ends = {int(row["epoch"]): float(row["step"] + 1) for row in steps}
    _draw_losses(axes["loss"], taken, steps, epochs, ends)
    if "error" in axes:
        _draw_error_rates(axes["error"], epochs, ends)
    _draw_rates(axes["rate"], taken, steps)
    for panel in panels:
        _shade_phases(panel, steps, ends, named=panel is panels[0])
        _tidy(panel)
    panels[-1].set_xlabel("optimizer step")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[-1].set_xlim(0, taken.max(initial=1.0) * 1.05)
    figure.align_ylabels()
    return _png(figure)


def confusion_matrix(counts: NDArray[np.int64], class_names: Sequence[str]) -> bytes:
    """Draw how often each class was taken for each; what is right in blue, errors in red.

    Colours show the share of the actual class's photos. Beyond 60 classes cells carry no numbers
    and few classes are named; beyond 500 a cell stands for a block of classes and shows its
    largest share.

    Args:
        counts: Shape (C, C): actual class in rows, predicted class in columns.
        class_names: Names in index order, C of them.

    Returns:
        A PNG of at most about 1900 x 1900 pixels; 1250 x 1250 and below 200 kB at 37 classes.
    """
    num_classes = len(class_names)
    labelled = num_classes <= _MAX_LABELLED_CLASSES
    side = max(0.235 * num_classes, 1.2) if labelled else 8.0
    margin = 0.7 + 0.08 * max((len(_short(name)) for name in class_names), default=0)
    figure = _figure(side + margin + 0.4, side + margin + 0.8, dpi=112 if labelled else 100)
    axes = figure.subplots()
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    wrong, right = _error_and_diagonal_layers(share, math.ceil(num_classes / _MAX_CELLS_A_SIDE))
    _draw_layers(figure, axes, wrong, right, num_classes)
    _name_classes(axes, class_names, labelled)
    if labelled:
        _write_counts(axes, counts, share)
        edges = np.arange(num_classes + 1) - 0.5
        axes.set_xticks(edges, minor=True)
        axes.set_yticks(edges, minor=True)
        axes.grid(which="minor", color="#e3e7ec", linewidth=0.5)
        axes.tick_params(which="both", length=0)
    axes.set_xlabel("predicted", fontsize=11, color=_INK, labelpad=8)
    axes.set_ylabel("actual", fontsize=11, color=_INK, labelpad=8)
    axes.spines[:].set_color("#b9c1ca")
    return _png(figure)


def _figure(width: float, height: float, dpi: int) -> Figure:
    return Figure((width, height), dpi=dpi, facecolor="white", layout="constrained")


def _png(figure: Figure) -> bytes:
    drawn, packed = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=figure.dpi, pil_kwargs={"compress_level": 1})
    pixels = _cropped(Image.open(drawn).convert("RGB"))
    # Anti-aliased lines and text need few colours: a palette is a third of the bytes.
    pixels.quantize(256).save(packed, "PNG", optimize=True)
    return packed.getvalue()


def _cropped(pixels: Image.Image, pad: int = 12) -> Image.Image:
    """Without the empty margins that square axes leave in a figure."""
    box = ImageChops.invert(pixels).getbbox()
    if box is None:
        return pixels
    left, top, right, bottom = box
    return ImageOps.expand(pixels.crop((left, top, right, bottom)), pad, "white")


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#b9c1ca")
    axes.grid(color="#dfe4ea", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", color="#b9c1ca", labelcolor=_INK, labelsize=9)


def _say(axes: Axes, words: str) -> None:
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", color=_GREY)


def _lr_limits(losses: _Floats, smoothed: _Floats) -> tuple[float, float]:
    """Room for both curves but not for single spikes, and for the labels above them."""
    if not len(losses):
        return 0.0, 1.0
    low = float(min(np.percentile(losses, 2), smoothed.min()))
    high = float(max(np.percentile(losses, 98), smoothed.max()))
    span = (high - low) or 1.0
    return low - 0.06 * span, high + 0.42 * span


def _mark_suggestions(
    axes: Axes,
    rates: _Floats,
    smoothed: _Floats,
    suggestions: Mapping[str, float],
    chosen: str,
) -> None:
    # Labels descend from left to right, so that no stem runs through another's label.
    for i, (name, rate) in enumerate(sorted(suggestions.items(), key=lambda item: item[1])):
        best = name == chosen
        colour = _RED if best else _INK
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


def _column(steps: Sequence[Mapping[str, Any]], key: str) -> _Floats:
    """One number of each step, NaN where it is missing; shape (n,)."""
    values = (row.get(key) for row in steps)
    return np.array([math.nan if value is None else float(value) for value in values])


def _centred_mean(losses: _Floats) -> _Floats:
    """The mean of a window around each step, which unlike a running mean does not lag behind."""
    window = np.ones(min(max(5, len(losses) // 25), _MAX_WINDOW, len(losses)) or 1)
    if not len(losses):
        return losses
    sums = np.convolve(losses, window, mode="same")
    sizes = np.convolve(np.ones_like(losses), window, mode="same")
    return np.asarray(sums / sizes, dtype=np.float64)


def _draw_losses(
    axes: Axes,
    taken: _Floats,
    steps: Sequence[Mapping[str, Any]],
    epochs: Sequence[EpochMetrics],
    ends: Mapping[int, float],
) -> None:
    losses = _column(steps, "loss")
    axes.plot(taken, losses, color=_BLUE, alpha=0.25, linewidth=0.9, label="step")
    axes.plot(taken, _centred_mean(losses), color=_BLUE, linewidth=1.8, label="smoothed")
    for label, colour, marker, values in (
        ("train, epoch", _BLUE, "o", [epoch.train_loss for epoch in epochs]),
        ("valid, epoch", _ORANGE, "D", [epoch.valid_loss for epoch in epochs]),
    ):
        at = [(ends[e.epoch], v) for e, v in zip(epochs, values, strict=True)
              if v is not None and e.epoch in ends]  # fmt: skip
        if at:
            axes.plot(*zip(*at, strict=True), color=colour, marker=marker, markersize=7,
                      markeredgecolor="white", linewidth=1, linestyle="--", label=label,
                      zorder=5)  # fmt: skip
    axes.set_ylabel("loss")
    axes.set_ylim(bottom=0)
    if len(taken):
        axes.legend(loc="upper right", ncols=2, frameon=False, fontsize=9)
    else:
        _say(axes, "no steps were taken")


def _draw_error_rates(
    axes: Axes, epochs: Sequence[EpochMetrics], ends: Mapping[int, float]
) -> None:
    at = [(ends[epoch.epoch], epoch.valid_error_rate) for epoch in epochs
          if epoch.valid_error_rate is not None and epoch.epoch in ends]  # fmt: skip
    if at:
        axes.plot(*zip(*at, strict=True), color=_ORANGE, marker="D", markersize=6, linewidth=1.4,
                  markeredgecolor="white", clip_on=False, zorder=5)  # fmt: skip
    # Beyond a dozen epochs the figures would run into each other.
    for step, rate in at if len(at) <= 12 else at[-1:]:
        axes.annotate(f"{rate:.1%}", (step, rate), (5, 4), textcoords="offset points",
                      color=_ORANGE, fontsize=9, fontweight="bold")  # fmt: skip
    axes.set_ylabel("valid error")
    top = max([rate for _, rate in at], default=0.0) * 1.45 or 0.01
    axes.set_ylim(0, top)
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0 if top > 0.05 else 1))


def _draw_rates(axes: Axes, taken: _Floats, steps: Sequence[Mapping[str, Any]]) -> None:
    prefix = "lr_group_"
    groups = sorted({int(k.removeprefix(prefix)) for row in steps for k in row if prefix in k})
    colours = colormaps["viridis"](np.linspace(0.85, 0.15, max(len(groups), 1)))
    phases = [str(row["phase"]) for row in steps]
    starts = [i for i in range(1, len(phases)) if phases[i] != phases[i - 1]]
    peaks = []
    for group, colour in zip(groups, colours, strict=False):
        rates = _column(steps, f"{prefix}{group}")
        peaks.append(float(np.nanmax(rates, initial=0.0)))
        # Each phase has a schedule of its own: no line from one's end to the next one's start.
        axes.plot(np.insert(taken, starts, np.nan), np.insert(rates, starts, np.nan),
                  color=colour, linewidth=1.8,
                  label=f"group {group}" + (" (head)" if group == groups[-1] else ""))  # fmt: skip
    axes.set_yscale("log", nonpositive="mask")
    axes.set_ylabel("learning rate")
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
            # A phase too narrow for its name has it a line higher, clear of the next one's.
            lift = 4 if len(rows) > 0.08 * len(steps) else 17
            axes.annotate(phase, (min(rows), 1.0), (3, lift), xycoords=axes.get_xaxis_transform(),
                          textcoords="offset points", color=_GREY, fontsize=9.5,
                          fontweight="bold", annotation_clip=False)  # fmt: skip


def _tinted(name: str, start: float, stop: float) -> Colormap:
    """A part of a colour map, so that its lightest tone can be told from the empty cell."""
    return ListedColormap(colormaps[name](np.linspace(start, stop, 64)))


def _error_and_diagonal_layers(share: _Floats, block: int) -> tuple[_Floats, _Floats]:
    """Part errors from what is right, each block of classes a cell; NaN where there is none."""
    on_diagonal = np.eye(len(share), dtype=bool)
    first = np.arange(0, len(share), block) if len(share) else np.zeros(0, np.int64)
    layers = []
    for mask in (~on_diagonal, on_diagonal):
        layer = np.where(mask, share, 0.0)
        if block > 1:
            layer = np.maximum.reduceat(np.maximum.reduceat(layer, first, axis=0), first, axis=1)
        layers.append(np.where(layer > 0, layer, np.nan))
    return layers[0], layers[1]


def _draw_layers(
    figure: Figure, axes: Axes, wrong: _Floats, right: _Floats, num_classes: int
) -> None:
    reds, blues = _tinted("Reds", 0.14, 0.95), _tinted("Blues", 0.22, 0.92)
    # A few per cent is already a fault worth seeing: the root spreads the low end.
    for place, words, layer, colours, norm in (
        (0.0, "right, share of the actual class", right, blues, Normalize(0.0, 1.0)),
        (0.5, "wrong, share of the actual class", wrong, reds, PowerNorm(0.5, 0.0, 0.5)),
    ):
        if layer.size:
            axes.imshow(layer, cmap=colours, norm=norm, interpolation="nearest",
                        extent=(-0.5, num_classes - 0.5, num_classes - 0.5, -0.5))  # fmt: skip
        # Where a matrix is too small for the scale, its numbers say all.
        if num_classes > _MIN_SCALED_CLASSES:
            scale = axes.inset_axes((place, 1.04, 0.42, 0.018))
            bar = figure.colorbar(
                ScalarMappable(norm, colours), cax=scale, orientation="horizontal",
                format=PercentFormatter(1.0, decimals=0),
                extend="max" if norm.vmax != 1.0 else "neither",
            )  # fmt: skip
            scale.set_title(words, fontsize=9, color=_GREY, loc="left", pad=3)
            scale.tick_params(labelsize=8, labelcolor=_INK, length=2, pad=1)
            bar.outline.set_visible(False)


def _name_classes(axes: Axes, class_names: Sequence[str], labelled: bool) -> None:
    count = len(class_names)
    at = list(range(0, count, 1 if labelled else math.ceil(count / 20)))
    names = [_short(class_names[i]) for i in at]
    size = 8.5 if labelled else 7.5
    # A dollar in a name is a dollar, not the start of a formula.
    axes.set_xticks(at, names, rotation=90, fontsize=size, color=_INK, parse_math=False)
    axes.set_yticks(at, names, fontsize=size, color=_INK, parse_math=False)


def _short(name: str) -> str:
    flat = " ".join(name.split())
    return flat if len(flat) <= _MAX_NAME else flat[: _MAX_NAME - 1] + "…"


def _write_counts(axes: Axes, counts: NDArray[np.int64], share: _Floats) -> None:
    for row, column in zip(*np.nonzero(counts), strict=True):
        number = str(counts[row, column])
        dark = share[row, column] > (0.55 if row == column else 0.14)
        axes.text(
            float(column), float(row), number, ha="center", va="center_baseline",
            color="white" if dark else _INK, fontsize=7.5 if len(number) < 4 else 5.5,
        )  # fmt: skip
