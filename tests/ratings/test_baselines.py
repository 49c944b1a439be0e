"""User and item biases: the published formula, with damping towards 0 for few ratings."""

import numpy as np
import pytest

from pets_core.ratings.baselines import fit_biases
from pets_core.ratings.dataset import Ratings


def make_ratings(users, items, ratings) -> Ratings:
    return Ratings(
        np.array(users, np.int32), np.array(items, np.int32), np.array(ratings, np.float32)
    )


def test_one_round_matches_the_published_formula():
    ratings = make_ratings([1, 1, 2], [1, 2, 1], [5, 2, 4])
    found = fit_biases(ratings, 2, 2, item_damping=10, user_damping=15, rounds=1)
    mean = 11 / 3
    items = [(5 + 4 - 2 * mean) / 12, (2 - mean) / 11]
    assert found.mean == pytest.approx(mean)
    assert found.items[1:].tolist() == pytest.approx(items)
    users = [(5 - mean - items[0] + 2 - mean - items[1]) / 17, (4 - mean - items[0]) / 16]
    assert found.users[1:].tolist() == pytest.approx(users)


def test_undamped_fit_recovers_the_true_biases():
    random = np.random.default_rng(0)
    users, items = np.divmod(np.arange(30 * 20), 20)
    of_users, of_items = random.normal(size=30), random.normal(size=20)
    ratings = make_ratings(users + 1, items + 1, 3 + of_users[users] + of_items[items])
    found = fit_biases(ratings, 30, 20, item_damping=0, user_damping=0, rounds=50)
    assert found.predict(ratings) == pytest.approx(ratings.ratings, abs=1e-4)


def test_unknown_user_and_item_are_predicted_as_the_mean():
    ratings = make_ratings([1, 2], [1, 2], [5, 1])
    found = fit_biases(ratings, 2, 2)
    assert found.predict(make_ratings([0], [0], [4])).tolist() == [3.0]
