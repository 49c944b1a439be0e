"""Items by their factors, predictions beside ratings, and what weight decay does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pets_core.plots.style import BLUE, GREY, INK, ORANGE, Floats, new_figure, png, say, tidy

__all__ = ["embedding_map", "rating_errors", "weight_decays"]

_MAX_TITLE = 28
_MAX_LEVELS = 20


def embedding_map(places: Floats, titles: Sequence[str]) -> bytes:
    """Draw items where the two main directions of their factors put them.

    Args:
        places: (n, 2).
        titles: n.

    Returns:
        A PNG of about 1000 x 900 pixels.
    """
    figure = new_figure(9.0, 8.0, dpi=112)
    axes = figure.subplots()
    axes.scatter(places[:, 0], places[:, 1], s=14, color=BLUE, zorder=3)
    for (x, y), title in zip(places, titles, strict=True):
        short = title if len(title) <= _MAX_TITLE else f"{title[: _MAX_TITLE - 1]}…"
        axes.annotate(short, (x, y), (4, 3), textcoords="offset points", fontsize=7.5, color=INK,
                      parse_math=False)  # fmt: skip
    axes.set_xlabel("first principal component of the factors")
    axes.set_ylabel("second")
    axes.margins(0.12)
    tidy(axes)
    return png(figure)


def rating_errors(ratings: NDArray[np.float32], predicted: NDArray[np.float32]) -> bytes:
    """Draw what was predicted for each rating given, and how far it was off.

    Args:
        ratings: (N,).
        predicted: (N,).

    Returns:
        A PNG of about 1000 x 400 pixels.
    """
    figure = new_figure(9.0, 3.6, dpi=112)
    left, right = figure.subplots(1, 2)
    levels = np.unique(ratings)
    if len(levels) > _MAX_LEVELS:
        levels = np.quantile(ratings, np.linspace(0, 1, _MAX_LEVELS + 1))
        levels = np.unique((levels[1:] + levels[:-1]) / 2)
    level_of = np.digitize(ratings, (levels[1:] + levels[:-1]) / 2)
    groups = [predicted[level_of == number] for number in range(len(levels))]
    width = 0.6 * float(np.diff(levels).min()) if len(levels) > 1 else 0.5
    left.boxplot(
        groups, positions=levels, widths=width, whis=(5, 95), showfliers=False, manage_ticks=False,
        medianprops={"color": ORANGE}, boxprops={"color": BLUE}, whiskerprops={"color": BLUE},
        capprops={"color": BLUE},
    )  # fmt: skip
    left.plot(levels, levels, color=GREY, linewidth=1, linestyle=(0, (2, 3)))
    left.set_xlabel("rating given")
    left.set_ylabel("predicted (5% to 95%)")
    errors = predicted - ratings
    most = float(np.abs(errors).max()) or 1.0
    right.hist(errors, bins=60, range=(-most, most), color=BLUE)
    right.set_xlabel("predicted - given")
    right.set_ylabel("ratings")
    tidy(left)
    tidy(right)
    return png(figure)


def weight_decays(decays: Sequence[float], train: Sequence[float], valid: Sequence[float]) -> bytes:
    """Draw training and validation error over weight decay.

    Args:
        decays: Weight decays, n of them.
        train: Root mean squared error of the training ratings, n.
        valid: Of the validation ratings, n.

    Returns:
        A PNG of about 800 x 400 pixels.
    """
    figure = new_figure(7.0, 3.6, dpi=112)
    axes = figure.subplots()
    if not decays:
        say(axes, "nothing was trained")
        return png(figure)
    order = np.argsort(decays)
    along = range(len(decays))
    for values, colour, name in ((train, GREY, "training"), (valid, BLUE, "validation")):
        axes.plot(along, [values[i] for i in order], marker="o", color=colour, label=name)
    axes.set_xticks(along, [f"{decays[i]:g}" for i in order])
    axes.set_xlabel("weight decay")
    axes.set_ylabel("RMSE")
    axes.legend(frameon=False, fontsize=9)
    tidy(axes)
    return png(figure)
