"""Random predictions of tags."""

from collections.abc import Callable

import numpy as np
import pytest

from pets_core.evaluation.predictions import Predictions, PredictionsInfo
from pets_core.targets.tags.target import binary_cross_entropy


@pytest.fixture
def draw() -> Callable[..., Predictions]:
    """Return a function that draws predictions of photos; no photo has the last tag."""

    def drawn(num_rows: int = 60, num_tags: int = 5, *, seed: int = 0, **fields) -> Predictions:
        random = np.random.default_rng(seed)
        targets = random.random((num_rows, num_tags)) < 0.35
        if num_tags > 1:
            targets[:, -1] = False
        noise = random.normal(0, 1.2, targets.shape)
        probabilities = (1 / (1 + np.exp(2 - 3 * targets + noise))).astype(np.float32)
        names = fields.pop("tags", [f"tag {n}" for n in range(num_tags)])
        info_fields = {
            "targets": "tags", "split": "test", "model_url": "a/model", "backbone": "resnet34",
            "image_size": 64, "dataset_url": "nowhere/pets/f", "dataset_name": "pets",
            "dataset_fingerprint": "f", "vocabulary": [{"name": name} for name in names],
        } | fields  # fmt: skip
        info = PredictionsInfo.model_validate(info_fields)
        ids = [f"photo-{row}" for row in range(num_rows)]
        losses = binary_cross_entropy(targets, probabilities)
        return Predictions(info, ids, targets, probabilities, losses)

    return drawn
