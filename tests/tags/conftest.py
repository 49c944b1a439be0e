"""Predictions of tags drawn by chance, and files of them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pets_core.tags.predictions import (
    TagPredictions,
    TagPredictionsInfo,
    binary_cross_entropy,
    write_tag_predictions,
)


@pytest.fixture
def draw() -> Callable[..., TagPredictions]:
    """Draw predictions of `num_rows` photos; the last tag is one that none of them has."""

    def drawn(num_rows: int = 60, num_tags: int = 5, *, seed: int = 0, **about) -> TagPredictions:
        random = np.random.default_rng(seed)
        targets = random.random((num_rows, num_tags)) < 0.35
        if num_tags > 1:
            targets[:, -1] = False
        noise = random.normal(0, 1.2, targets.shape)
        probabilities = (1 / (1 + np.exp(2 - 3 * targets + noise))).astype(np.float32)
        said = {
            "split": "test", "model_url": "a/model", "backbone": "resnet34", "image_size": 64,
            "dataset_url": "nowhere/pets/f", "dataset_name": "pets", "dataset_fingerprint": "f",
            "tags": tuple(about.pop("tags", [f"tag {n}" for n in range(num_tags)])),
        } | about  # fmt: skip
        info = TagPredictionsInfo.model_validate(said)
        ids = [f"photo-{row}" for row in range(num_rows)]
        losses = binary_cross_entropy(targets, probabilities)
        return TagPredictions(info, ids, targets, probabilities, losses)

    return drawn


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Write predictions as an evaluation does; returns the file's path."""

    def written(predictions: TagPredictions, name: str = "predictions.parquet") -> str:
        url = str(tmp_path / name)
        write_tag_predictions(
            url, predictions.info, predictions.ids, predictions.targets, predictions.probabilities
        )
        return url

    return written
