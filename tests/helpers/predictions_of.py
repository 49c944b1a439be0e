"""Predictions that a test makes up."""

import numpy as np

from pets_core.evaluation.predictions import Predictions, PredictionsInfo
from pets_core.records.dataset import ClassInfo

__all__ = ["info_of", "predictions_of"]


def info_of(names: list[str], **about: object) -> PredictionsInfo:
    """What a file of predictions says of itself, unless `about` says something else."""
    said = {
        "classes": tuple(ClassInfo(name=name) for name in names), "split": "test",
        "model_url": "a/model", "backbone": "resnet34", "image_size": 64,
        "dataset_url": "nowhere/pets/f", "dataset_name": "pets", "dataset_fingerprint": "f",
    } | about  # fmt: skip
    return PredictionsInfo.model_validate(said)


def predictions_of(
    info: PredictionsInfo, ids: list[str], targets: np.ndarray, probabilities: np.ndarray
) -> Predictions:
    """Predictions with the losses that these probabilities come to."""
    own = np.take_along_axis(probabilities, targets[:, None], 1)[:, 0]
    losses = -np.log(np.maximum(own, np.finfo(np.float32).tiny))
    return Predictions(info, ids, targets, probabilities, losses)
