"""Fixtures for random class predictions and predictions files."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_predictions import write_drawn
from predictions_of import info_of, predictions_of

from pets_core.evaluation.predictions import Predictions
from pets_core.targets.classes.predictions import ClassPredictions


def logits_of(targets: np.ndarray, num_classes: int, *, skill: float, seed: int) -> np.ndarray:
    """Return random logits, with those of the true class raised by `skill`."""
    logits = np.random.default_rng(seed).normal(size=(len(targets), num_classes))
    logits[np.arange(len(targets)), targets] += skill
    return logits.astype(np.float32)


@pytest.fixture
def draw_classes() -> Callable[..., ClassPredictions]:
    """Function that draws predictions of `num_rows` photos of `num_classes` classes."""

    def drawn(
        num_rows: int = 200, num_classes: int = 5, *, skill: float = 2.0, seed: int = 0, **about
    ) -> ClassPredictions:
        names = about.pop("names", [f"class-{i}" for i in range(num_classes)])
        targets = np.random.default_rng(seed + 1000).integers(0, len(names), num_rows)
        logits = logits_of(targets, len(names), skill=skill, seed=seed).astype(np.float64)
        odds = np.exp(logits)
        probabilities = (odds / odds.sum(1, keepdims=True)).astype(np.float32)
        ids = [f"photo-{row}" for row in range(num_rows)]
        return predictions_of(info_of(names, **about), ids, targets, probabilities)

    return drawn


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Function that writes predictions of any kind to a file and returns its path."""

    def written(predictions: Predictions, name: str = "predictions.parquet") -> str:
        return write_drawn(str(tmp_path / name), predictions)

    return written
