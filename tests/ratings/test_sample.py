"""Built-in sample: reproducible, in MovieLens format, with biases and factors to learn."""

import numpy as np
import pyarrow.csv
import pytest

from pets_core.ratings.sample import write_ratings_sample


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample") / "new"
    write_ratings_sample(folder)
    return folder


def test_same_seed_gives_the_same_bytes(folder, tmp_path):
    for seed, same in ((0, True), (1, False)):
        write_ratings_sample(tmp_path, seed=seed)
        again, first = ((f / "ratings.csv").read_bytes() for f in (tmp_path, folder))
        assert (again == first) is same


def test_sample_has_the_movielens_format(folder):
    ratings = pyarrow.csv.read_csv(folder / "ratings.csv")
    assert ratings.column_names == ["userId", "movieId", "rating", "timestamp"]
    assert 25_000 < ratings.num_rows < 35_000
    stars = set(ratings["rating"].to_pylist())
    assert stars == {half / 2 for half in range(1, 11)}
    assert ratings.group_by(["userId", "movieId"]).aggregate([]).num_rows == ratings.num_rows
    films = pyarrow.csv.read_csv(folder / "movies.csv")
    assert films.slice(16, 1).to_pylist() == [{"movieId": 17, "title": "Film 017"}]
    assert films.num_rows == 400


def test_some_users_and_films_have_many_ratings(folder):
    ratings = pyarrow.csv.read_csv(folder / "ratings.csv")
    of_users, of_films = (np.bincount(ratings[name])[1:] for name in ("userId", "movieId"))
    assert (len(of_users), of_users.min()) == (600, 20)
    for counts in (of_users, of_films):
        few, many = np.quantile(counts, [0.1, 0.9])
        assert many > 3 * few


def test_biases_and_factors_explain_part_of_the_variance(folder):
    """Standard deviation in stars after the mean, the biases and three factors."""
    ratings = pyarrow.csv.read_csv(folder / "ratings.csv")
    users, items, stars = (
        ratings[name].to_numpy() for name in ("userId", "movieId", "rating")
    )  # fmt: skip
    rest = stars - stars.mean()
    left = [rest.std()]
    for _ in range(5):
        for ids in (users, items):
            rest = rest - (np.bincount(ids, rest) / np.maximum(np.bincount(ids), 1))[ids]
    left.append(rest.std())
    table = np.zeros((users.max() + 1, items.max() + 1))
    factors = np.random.default_rng(0).normal(size=(table.shape[1], 3))
    for _ in range(100):
        # Missing ratings are imputed by the three factors (Mazumder and others, 2010).
        table[users, items] = rest
        basis = np.linalg.qr(table @ factors).Q
        factors = table.T @ basis
        table = basis @ factors.T
    left.append((rest - table[users, items]).std())
    assert left == pytest.approx([0.98, 0.78, 0.48], abs=0.08)
