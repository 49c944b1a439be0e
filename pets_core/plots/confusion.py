"""Confusion matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from pets_core.plots.style import GREY, INK, Floats, new_figure, png, shorten

__all__ = ["confusion_matrix"]

_MIN_SCALED_CLASSES, _MAX_LABELLED_CLASSES = 12, 60
_MAX_CELLS_PER_SIDE = 500
_MAX_NAME = 28


def confusion_matrix(counts: NDArray[np.int64], class_names: Sequence[str]) -> bytes:
    """Plot a confusion matrix with correct predictions in blue and errors in red.

    Colours show the share of the actual class's photos. With more than 60 classes, cells have no
    numbers and only some classes are named. With more than 500 classes, each cell shows the largest
    share of a block of classes.

    Args:
        counts: Shape (C, C): actual class in rows, predicted class in columns.
        class_names: Names of the C classes by index.

    Returns:
        A PNG of at most about 1900 x 1900 pixels; 1250 x 1250 and below 200 kB at 37 classes.
    """
    num_classes = len(class_names)
    labelled = num_classes <= _MAX_LABELLED_CLASSES
    side = max(0.235 * num_classes, 1.2) if labelled else 8.0
    margin = 0.7 + 0.08 * max((len(_short(name)) for name in class_names), default=0)
    figure = new_figure(side + margin + 0.4, side + margin + 0.8, dpi=112 if labelled else 100)
    axes = figure.subplots()
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    errors, correct = _split_layers(share, math.ceil(num_classes / _MAX_CELLS_PER_SIDE))
    _draw_layers(figure, axes, errors, correct, num_classes)
    _name_classes(axes, class_names, labelled)
    if labelled:
        _write_counts(axes, counts, share)
        edges = np.arange(num_classes + 1) - 0.5
        axes.set_xticks(edges, minor=True)
        axes.set_yticks(edges, minor=True)
        axes.grid(which="minor", color="#e3e7ec", linewidth=0.5)
        axes.tick_params(which="both", length=0)
    axes.set_xlabel("Predicted", fontsize=11, color=INK, labelpad=8)
    axes.set_ylabel("Actual", fontsize=11, color=INK, labelpad=8)
    axes.spines[:].set_color("#b9c1ca")
    return png(figure)


def _cut_colormap(name: str, start: float, stop: float) -> Colormap:
    """Return a part of a colour map whose lightest colour differs from an empty cell."""
    return ListedColormap(colormaps[name](np.linspace(start, stop, 64)))


def _split_layers(share: Floats, block: int) -> tuple[Floats, Floats]:
    """Return errors and correct predictions, one cell per block of classes; NaN: none."""
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
    figure: Figure, axes: Axes, errors: Floats, correct: Floats, num_classes: int
) -> None:
    reds, blues = _cut_colormap("Reds", 0.14, 0.95), _cut_colormap("Blues", 0.22, 0.92)
    # The square root spreads the low end: errors of a few per cent must be visible.
    for left, title, layer, colours, norm in (
        (0.0, "Correct, share of the actual class", correct, blues, Normalize(0.0, 1.0)),
        (0.5, "Errors, share of the actual class", errors, reds, PowerNorm(0.5, 0.0, 0.5)),
    ):
        if layer.size:
            axes.imshow(layer, cmap=colours, norm=norm, interpolation="nearest",
                        extent=(-0.5, num_classes - 0.5, num_classes - 0.5, -0.5))  # fmt: skip
        # A small matrix has no room for the scale; its cells have numbers.
        if num_classes > _MIN_SCALED_CLASSES:
            scale = axes.inset_axes((left, 1.04, 0.42, 0.018))
            bar = figure.colorbar(
                ScalarMappable(norm, colours), cax=scale, orientation="horizontal",
                format=PercentFormatter(1.0, decimals=0),
                extend="max" if norm.vmax != 1.0 else "neither",
            )  # fmt: skip
            scale.set_title(title, fontsize=9, color=GREY, loc="left", pad=3)
            scale.tick_params(labelsize=8, labelcolor=INK, length=2, pad=1)
            bar.outline.set_visible(False)


def _name_classes(axes: Axes, class_names: Sequence[str], labelled: bool) -> None:
    count = len(class_names)
    at = list(range(0, count, 1 if labelled else math.ceil(count / 20)))
    names = [_short(class_names[i]) for i in at]
    size = 8.5 if labelled else 7.5
    # Names may contain dollar signs, which matplotlib would parse as formulas.
    axes.set_xticks(at, names, rotation=90, fontsize=size, color=INK, parse_math=False)
    axes.set_yticks(at, names, fontsize=size, color=INK, parse_math=False)


def _short(name: str) -> str:
    return shorten(" ".join(name.split()), _MAX_NAME)


def _write_counts(axes: Axes, counts: NDArray[np.int64], share: Floats) -> None:
    for row, column in zip(*np.nonzero(counts), strict=True):
        number = str(counts[row, column])
        dark = share[row, column] > (0.55 if row == column else 0.14)
        axes.text(
            float(column), float(row), number, ha="center", va="center_baseline",
            color="white" if dark else INK, fontsize=7.5 if len(number) < 4 else 5.5,
        )  # fmt: skip
