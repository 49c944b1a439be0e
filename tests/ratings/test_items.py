"""Errors of known and cold pairs, nearest items, and plots."""

import io

import numpy as np
import pytest
from PIL import Image

from pets_core.plots import ratings as plots
from pets_core.ratings.dataset import Ratings
from pets_core.ratings.items import nearest, principal_plane
from pets_core.ratings.target import rating_errors


def test_errors_are_separate_for_known_and_cold_pairs():
    ratings = Ratings(
        np.array([1, 2, 0], np.int32), np.array([1, 2, 1], np.int32),
        np.array([4, 3, 2], np.float32),
    )  # fmt: skip
    row = rating_errors("m", ratings, np.array([5.0, 3.0, 4.0]))
    assert row.rmse == pytest.approx(np.sqrt(5 / 3))
    assert row.mae == pytest.approx(1.0)
    assert row.rmse_known == pytest.approx(np.sqrt(1 / 2))
    assert row.rmse_cold == pytest.approx(2.0)
    known = rating_errors("m", Ratings(*(column[:2] for column in ratings)), np.zeros(2))
    assert known.rmse_cold is None


def test_nearest_items_have_the_most_similar_direction():
    factors = np.array([[9, 9], [1, 0], [10, 1], [0, 1], [-1, 0]], np.float32)
    assert nearest(factors, np.array([1, 3]), 2).tolist() == [[2, 3], [2, 1]]
    assert nearest(factors, np.array([1]), 99).shape == (1, 3)
    assert nearest(factors[:2], np.array([1]), 5).shape == (1, 0)


def test_principal_plane_keeps_the_distances_of_planar_points():
    random = np.random.default_rng(0)
    flat = random.normal(size=(12, 2))
    rotated = (flat @ np.linalg.qr(random.normal(size=(5, 2)))[0].T).astype(np.float32)
    plane = principal_plane(rotated)

    def distances(points):
        return np.linalg.norm(points[:, None] - points[None], axis=2)

    assert distances(plane) == pytest.approx(distances(flat), abs=1e-4)
    assert principal_plane(np.ones((1, 1), np.float32)).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("count", [1, 2, 300])
def test_plots_accept_any_number_of_points(count):
    random = np.random.default_rng(0)
    ratings = random.integers(1, 6, count).astype(np.float32)
    ratings[count // 2 :] += random.random(count - count // 2).astype(np.float32)
    for plot in (
        plots.rating_errors(ratings, ratings + 0.1),
        plots.embedding_map(random.normal(size=(count, 2)), ["$a_$" * 20] * count),
        plots.weight_decays([0.1] * count, [1.0] * count, [2.0] * count),
    ):
        assert Image.open(io.BytesIO(plot)).width > 500
