"""Splits of ratings by a hash of ids and seed, or by time."""

import numpy as np
import pyarrow as pa
import pytest

from pets_core.ratings.split import SPLITS, split_by_hash, split_by_time
from pets_core.ratings.table import RatingsTable


def table(num_users: int, num_items: int, times=None) -> RatingsTable:
    """Return a table in which every user rates every item."""
    users, items = np.divmod(np.arange(num_users * num_items, dtype=np.int32), num_items)
    ids = [pa.array(map(str, range(n)), pa.string()) for n in (num_users, num_items)]
    ratings = np.ones(len(users), np.float32)
    return RatingsTable(users, items.astype(np.int32), ratings, times, *ids, (0, 1))


def test_random_split_is_stable_across_releases():
    """Otherwise a model could be evaluated on its training ratings."""
    splits = split_by_hash(table(4, 5), 0.25, 0.25, seed=7).reshape(4, 5).tolist()
    assert splits == [[2, 0, 1, 0, 0], [0, 0, 0, 1, 0], [2, 1, 0, 0, 0], [0, 2, 0, 0, 0]]


def test_split_fractions_hold_for_all_users_and_items():
    splits = split_by_hash(table(400, 500), 0.1, 0.2, seed=0).reshape(400, 500)
    for number, share in enumerate((0.7, 0.1, 0.2)):
        held = splits == number
        assert held.mean() == pytest.approx(share, abs=0.005)
        for axis in (0, 1):
            # Five standard deviations of a binomial share.
            spread = (share * (1 - share) / splits.shape[axis]) ** 0.5
            assert abs(held.mean(axis) - share).max() < 5 * spread


def test_split_of_a_rating_does_not_depend_on_other_ratings():
    few, many = (split_by_hash(table(n, n), 0.2, 0.2, seed=1) for n in (10, 30))
    assert (few.reshape(10, 10) == many.reshape(30, 30)[:10, :10]).all()


@pytest.mark.parametrize("other", [{"seed": 2}, {"users": "items"}])
def test_seed_and_id_roles_change_the_split(other):
    first = split_by_hash(table(20, 20), 0.3, 0.3, seed=1).reshape(20, 20)
    second = first.T if "users" in other else (
        split_by_hash(table(20, 20), 0.3, 0.3, **other).reshape(20, 20)
    )  # fmt: skip
    assert 0.2 < (first == second).mean() < 0.6


def test_newest_ratings_are_in_the_test_split():
    times = np.array([5, 3, 9, 1, 9, 9, 2, 4, 0, 6])
    splits = [SPLITS[n] for n in split_by_time(table(2, 5, times), 0.2, 0.3)]
    train, valid, test = ([t for t, s in zip(times, splits, strict=True) if s == split]
                          for split in SPLITS)  # fmt: skip
    assert (sorted(train), sorted(valid), sorted(test)) == ([0, 1, 2, 3, 4], [5, 6], [9, 9, 9])


def test_ratings_at_the_same_time_are_ordered_by_user_and_item():
    assert split_by_time(table(2, 5, np.zeros(10)), 0.2, 0.3).tolist() == [0] * 5 + [
        1,
        1,
        2,
        2,
        2,
    ]
