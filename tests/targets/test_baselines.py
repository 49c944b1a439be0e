"""Warnings of baselines that a model does not beat."""

import pytest

from pets_core.records.evaluation import Metric
from pets_core.targets.base import baseline_warnings


@pytest.mark.parametrize(
    ("metric", "baselines", "notes"),
    [
        (
            Metric(name="RMSE", value=0.974),
            {"the biases": 0.943, "the mean": 1.1},
            ["RMSE 0.974 is worse than the biases (0.943)."],
        ),
        (Metric(name="RMSE", value=0.9), {"the biases": 0.943}, []),
        (Metric(name="RMSE", value=0.9), {}, []),
        (
            Metric(name="error rate", value=0.5, unit="%"),
            {"guessing": 0.5},
            ["error rate 50.0% is no better than guessing."],
        ),
        (
            Metric(name="mAP", value=0.2, unit="%", higher_is_better=True),
            {"guessing": 0.25, "nothing": 0.1},
            ["mAP 20.0% is worse than guessing (25.0%)."],
        ),
    ],
)
def test_baselines_that_the_model_does_not_beat_are_reported(metric, baselines, notes):
    assert baseline_warnings(metric, baselines) == notes
