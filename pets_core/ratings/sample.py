"""Built-in sample: synthetic ratings of fictional films, in the format of MovieLens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv

__all__ = ["write_ratings_sample"]

_NUM_USERS, _NUM_ITEMS, _NUM_FACTORS = 600, 400, 3
_MEAN_RATINGS_PER_USER, _MIN_RATINGS_PER_USER = 50, 20
_MEAN, _BIAS, _FACTOR, _NOISE = 3.4, 0.4, 0.65, 0.5
"""In stars: the mean, and standard deviations of biases, of a factor, and of noise."""
_FIRST_SECOND, _DAY_SECONDS = 1_577_836_800, 86_400
_NUM_DAYS, _MEAN_DAYS_OF_USER = 1461, 60


def write_ratings_sample(folder: Path, *, seed: int = 0) -> None:
    """Write ratings.csv and movies.csv in the format of MovieLens, deterministic by seed.

    Ratings are half stars from 0.5 to 5, from a learnable model: biases of users and films, and a
    dot product of three factors. Some films have far more ratings than others, and each user has an
    active period.

    Args:
        folder: Output folder, created if missing.
        seed: Random seed, 0 or more.
    """
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    users, items = np.nonzero(_sample_pairs(rng))
    ids = rng.permutation(np.arange(1, _NUM_ITEMS + 1))
    ratings = pa.table(
        {
            "userId": users + 1,
            "movieId": ids[items],
            "rating": _sample_stars(rng, users, items),
            "timestamp": _sample_times(rng, users),
        }
    )
    pa.csv.write_csv(ratings.sort_by([("userId", "ascending"), ("movieId", "ascending")]),
                     folder / "ratings.csv")  # fmt: skip
    numbers = range(1, _NUM_ITEMS + 1)
    films = {"movieId": list(numbers), "title": [f"Film {number:03}" for number in numbers]}
    pa.csv.write_csv(pa.table(films), folder / "movies.csv")


def _sample_pairs(rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Sample which user rated which film, (users, items); popular films more often."""
    popularity = rng.normal(0, 1, _NUM_ITEMS)
    # Gumbel top-k: sampling by weight without replacement.
    order = np.argsort(-(popularity + rng.gumbel(size=(_NUM_USERS, _NUM_ITEMS))), axis=1)
    spread = _MEAN_RATINGS_PER_USER - _MIN_RATINGS_PER_USER
    counts = _MIN_RATINGS_PER_USER + rng.exponential(spread, _NUM_USERS).astype(int)
    rated = np.zeros(order.shape, bool)
    np.put_along_axis(rated, order, np.arange(_NUM_ITEMS) < counts[:, None], axis=1)
    return rated


def _sample_stars(
    rng: np.random.Generator, users: npt.NDArray[np.int64], items: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Sample a rating for each pair, (N,)."""
    of_users = rng.normal(0, _FACTOR, (_NUM_USERS, _NUM_FACTORS))
    of_items = rng.normal(0, _FACTOR, (_NUM_ITEMS, _NUM_FACTORS))
    stars = _MEAN + rng.normal(0, _NOISE, len(users))
    stars += rng.normal(0, _BIAS, _NUM_USERS)[users] + rng.normal(0, _BIAS, _NUM_ITEMS)[items]
    stars += (of_users[users] * of_items[items]).sum(axis=1)
    return np.clip(np.round(stars * 2) / 2, 0.5, 5)


def _sample_times(rng: np.random.Generator, users: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Sample a time for each rating, (N,), seconds since 1970, within weeks of the user's start."""
    days = rng.uniform(0, _NUM_DAYS, _NUM_USERS)[users]
    days += rng.exponential(_MEAN_DAYS_OF_USER, len(users))
    return _FIRST_SECOND + (days * _DAY_SECONDS).astype(np.int64)
