"""Averages of predictions over views, weighted as in fastai's `tta`."""

import numpy as np
import pytest

from pets_core.evaluation.predict import average_predictions


def test_plain_photo_has_a_weight_of_one_quarter():
    random = np.random.default_rng(0)
    plain, *views = (random.dirichlet(np.ones(5), 6).astype(np.float32) for _ in range(4))
    averaged = average_predictions(plain, views)
    np.testing.assert_allclose(averaged, 0.25 * plain + 0.75 * np.mean(views, 0), rtol=1e-5)
    assert averaged.sum(1) == pytest.approx(1)
