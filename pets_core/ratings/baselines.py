"""What a model of ratings has to beat."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pets_core.ratings.dataset import Ratings

__all__ = ["Biases", "damped_biases"]

_TINY = 1e-12

Floats = npt.NDArray[np.float64]


class Biases(NamedTuple):
    """The mean rating, and how far users and items are from it.

    Attributes:
        mean: Of all ratings.
        users: By index, (num_users + 1,); 0 for who is not known.
        items: By index, (num_items + 1,).
    """

    mean: float
    users: Floats
    items: Floats

    def predict(self, ratings: Ratings) -> Floats:
        """Ratings as they would be by biases alone, (N,)."""
        predicted: Floats = self.mean + self.users[ratings.users] + self.items[ratings.items]
        return predicted


def damped_biases(
    ratings: Ratings,
    num_users: int,
    num_items: int,
    *,
    item_damping: float = 10.0,
    user_damping: float = 15.0,
    rounds: int = 10,
) -> Biases:
    """Fit the biases by turns, each a mean that is drawn to 0 where it rests on few ratings.

    Koren 2010, "Factor in the neighbors", with the defaults of the library Surprise.

    Args:
        ratings: To fit.
        num_users: Known users, whose indices begin at 1.
        num_items: Known items, likewise.
        item_damping: Ratings of 0 that are added to those of each item.
        user_damping: Likewise of each user.
        rounds: Turns.
    """
    values = ratings.ratings.astype(np.float64)
    mean = float(values.mean())
    values -= mean
    items, users = np.zeros(num_items + 1), np.zeros(num_users + 1)
    # Nobody has rated index 0, and without damping 0 would be divided by 0.
    of_items = np.bincount(ratings.items, minlength=num_items + 1).clip(_TINY)
    of_users = np.bincount(ratings.users, minlength=num_users + 1).clip(_TINY)
    for _ in range(rounds):
        rest = np.bincount(ratings.items, values - users[ratings.users], num_items + 1)
        items = rest / (item_damping + of_items)
        rest = np.bincount(ratings.users, values - items[ratings.items], num_users + 1)
        users = rest / (user_damping + of_users)
    items[0] = users[0] = 0.0
    return Biases(mean, users, items)
