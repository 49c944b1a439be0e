"""Baselines of a rating model: the mean rating, and user and item biases."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pets_core.ratings.dataset import Ratings

__all__ = ["Biases", "fit_biases"]

_TINY = 1e-12

Floats = npt.NDArray[np.float64]


class Biases(NamedTuple):
    """The mean rating, and the biases of users and items.

    Attributes:
        mean: Mean of all ratings.
        users: Bias by user index, (num_users + 1,); 0 at index 0 (unknown).
        items: Bias by item index, (num_items + 1,); 0 at index 0 (unknown).
    """

    mean: float
    users: Floats
    items: Floats

    def predict(self, ratings: Ratings) -> Floats:
        """Predict ratings from the biases alone, (N,)."""
        predicted: Floats = self.mean + self.users[ratings.users] + self.items[ratings.items]
        return predicted


def fit_biases(
    ratings: Ratings,
    num_users: int,
    num_items: int,
    *,
    item_damping: float = 10.0,
    user_damping: float = 15.0,
    rounds: int = 10,
) -> Biases:
    """Fit damped biases by alternating least squares.

    Koren (2010), "Factor in the neighbors", with the defaults of the Surprise library. Damping
    shrinks the biases of users and items with few ratings towards 0.

    Args:
        ratings: Ratings to fit.
        num_users: Known users; their indices start at 1.
        num_items: Known items; their indices start at 1.
        item_damping: Number of ratings of 0 added to each item.
        user_damping: Number of ratings of 0 added to each user.
        rounds: Iterations.
    """
    values = ratings.ratings.astype(np.float64)
    mean = float(values.mean())
    values -= mean
    items, users = np.zeros(num_items + 1), np.zeros(num_users + 1)
    # Index 0 has no ratings; avoids 0 / 0 without damping.
    of_items = np.bincount(ratings.items, minlength=num_items + 1).clip(_TINY)
    of_users = np.bincount(ratings.users, minlength=num_users + 1).clip(_TINY)
    for _ in range(rounds):
        rest = np.bincount(ratings.items, values - users[ratings.users], num_items + 1)
        items = rest / (item_damping + of_items)
        rest = np.bincount(ratings.users, values - items[ratings.items], num_users + 1)
        users = rest / (user_damping + of_users)
    items[0] = users[0] = 0.0
    return Biases(mean, users, items)
