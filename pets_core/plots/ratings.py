"""Plots of item factors, rating errors and weight decays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pets_core.plots.style import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    Floats,
    new_figure,
    note,
    png,
    shorten,
    tidy,
)

__all__ = ["embedding_map", "rating_errors", "weight_decays"]

_MAX_TITLE = 28
_MAX_LEVELS = 20


def embedding_map(coordinates: Floats, titles: Sequence[str]) -> bytes:
    """Plot items by the first two principal components of their factors.

    Args:
        coordinates: The two components of each item, (n, 2).
        titles: Titles of the n items.

    Returns:
        A PNG of about 1000 x 900 pixels.
    """
    figure = new_figure(9.0, 8.0, dpi=112)
    axes = figure.subplots()
    axes.scatter(coordinates[:, 0], coordinates[:, 1], s=14, color=BLUE, zorder=3)
    for (x, y), title in zip(coordinates, titles, strict=True):
        short = shorten(title, _MAX_TITLE)
        axes.annotate(short, (x, y), (4, 3), textcoords="offset points", fontsize=7.5, color=INK,
                      parse_math=False)  # fmt: skip
    axes.set_xlabel("First principal component of the factors")
    axes.set_ylabel("Second principal component")
    axes.margins(0.12)
    tidy(axes)
    return png(figure)


def rating_errors(ratings: NDArray[np.float32], predicted: NDArray[np.float32]) -> bytes:
    """Plot predicted over actual ratings, and a histogram of the errors.

    Args:
        ratings: Actual ratings, (N,).
        predicted: Predicted ratings, (N,).

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
    left.set_xlabel("Actual rating")
    left.set_ylabel("Predicted (5% to 95%)")
    errors = predicted - ratings
    limit = float(np.abs(errors).max()) or 1.0
    right.hist(errors, bins=60, range=(-limit, limit), color=BLUE)
    right.set_xlabel("Predicted - actual")
    right.set_ylabel("Ratings")
    tidy(left)
    tidy(right)
    return png(figure)


def weight_decays(decays: Sequence[float], train: Sequence[float], valid: Sequence[float]) -> bytes:
    """Plot training and validation RMSE over weight decay.

    Args:
        decays: The n weight decays.
        train: RMSE of the training ratings for each weight decay.
        valid: RMSE of the validation ratings for each weight decay.

    Returns:
        A PNG of about 800 x 400 pixels.
    """
    figure = new_figure(7.0, 3.6, dpi=112)
    axes = figure.subplots()
    if not decays:
        note(axes, "No training finished")
        return png(figure)
    order = np.argsort(decays)
    positions = range(len(decays))
    for values, colour, name in ((train, GREY, "Training"), (valid, BLUE, "Validation")):
        axes.plot(positions, [values[i] for i in order], marker="o", color=colour, label=name)
    axes.set_xticks(positions, [f"{decays[i]:g}" for i in order])
    axes.set_xlabel("Weight decay")
    axes.set_ylabel("RMSE")
    axes.legend(frameon=False, fontsize=9)
    tidy(axes)
    return png(figure)
