"""Predictions of the nearest training photos."""

import numpy as np
import pytest
import torch

from pets_core.evaluation import neighbours
from pets_core.evaluation.neighbours import predict_by_neighbours


def centred(values: np.ndarray) -> np.ndarray:
    centred = values - values.mean(1, keepdims=True)
    return centred / np.linalg.norm(centred, axis=1, keepdims=True)


@pytest.mark.parametrize("num_rows", [5, 60])
def test_outputs_are_averaged_by_similarity(num_rows, monkeypatch):
    """Compared with a loop; a block is smaller than the queries."""
    monkeypatch.setattr(neighbours, "_BLOCK", 4)
    random = np.random.default_rng(0)
    trained, queries = random.normal(size=(num_rows, 8)), random.normal(size=(10, 8))
    outputs = random.random((num_rows, 3)).astype(np.float32)
    predicted = predict_by_neighbours(torch.tensor(queries), torch.tensor(trained), outputs)
    for query, found in zip(centred(queries), predicted, strict=True):
        similarity = centred(trained) @ query
        nearest = np.argsort(-similarity)[:20]
        weights = np.exp(similarity[nearest] / 0.07)
        expected = (weights[:, None] * outputs[nearest]).sum(0) / weights.sum()
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_probabilities_sum_to_one():
    random = np.random.default_rng(1)
    outputs = np.eye(4, dtype=np.float32)[random.integers(0, 4, 50)]
    trained = torch.tensor(random.normal(size=(50, 8)))
    assert predict_by_neighbours(trained, trained, outputs).sum(1) == pytest.approx(1)


def test_averages_stay_within_the_outputs():
    """The weights' sum exceeds 1 by rounding, for some of the photos."""
    random = np.random.default_rng(2)
    trained = torch.tensor(random.normal(size=(300, 8)), dtype=torch.float32)
    predicted = predict_by_neighbours(trained, trained, np.ones((300, 2), np.float32))
    assert predicted.max() <= 1
