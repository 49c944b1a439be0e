"""Predictions averaged over views, as fastai's `tta` weighs them."""

import numpy as np
import pytest
import torch

from pets_core.evaluation.predict import average_views


def probabilities(logits) -> np.ndarray:
    return torch.from_numpy(np.asarray(logits)).softmax(1).numpy()


def test_the_plain_photo_counts_a_quarter():
    random = np.random.default_rng(0)
    plain, *views = (random.normal(size=(6, 5)).astype(np.float32) for _ in range(4))
    averaged = probabilities(average_views(plain, views))
    by_hand = 0.25 * probabilities(plain) + 0.75 * np.mean([probabilities(v) for v in views], 0)
    np.testing.assert_allclose(averaged, by_hand, rtol=1e-5)
    assert averaged.sum(1) == pytest.approx(1)


def test_a_class_that_no_view_believes_in_stays_finite():
    sure = np.array([[200.0, 0.0]], np.float32)
    averaged = average_views(sure, [sure, sure])
    assert np.isfinite(averaged).all()
    assert probabilities(averaged)[0, 0] == pytest.approx(1)
