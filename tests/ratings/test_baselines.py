"""Biases: as their formula says, drawn to 0 where little is known."""

import numpy as np
import pytest

from pets_core.ratings.baselines import fit_biases
from pets_core.ratings.dataset import Ratings


def made(users, items, ratings) -> Ratings:
    return Ratings(
        np.array(users, np.int32), np.array(items, np.int32), np.array(ratings, np.float32), None
    )


def test_one_round_is_the_published_formula():
    ratings = made([1, 1, 2], [1, 2, 1], [5, 2, 4])
    found = fit_biases(ratings, 2, 2, item_damping=10, user_damping=15, rounds=1)
    mean = 11 / 3
    items = [(5 + 4 - 2 * mean) / 12, (2 - mean) / 11]
    assert found.mean == pytest.approx(mean)
    assert found.items[1:].tolist() == pytest.approx(items)
    users = [(5 - mean - items[0] + 2 - mean - items[1]) / 17, (4 - mean - items[0]) / 16]
    assert found.users[1:].tolist() == pytest.approx(users)


def test_without_damping_biases_that_made_ratings_are_found():
    random = np.random.default_rng(0)
    users, items = np.divmod(np.arange(30 * 20), 20)
    of_users, of_items = random.normal(size=30), random.normal(size=20)
    ratings = made(users + 1, items + 1, 3 + of_users[users] + of_items[items])
    found = fit_biases(ratings, 30, 20, item_damping=0, user_damping=0, rounds=50)
    assert found.predict(ratings) == pytest.approx(ratings.ratings, abs=1e-4)


def test_whoever_is_not_known_is_average():
    ratings = made([1, 2], [1, 2], [5, 1])
    found = fit_biases(ratings, 2, 2)
    assert found.predict(made([0], [0], [4])).tolist() == [3.0]
