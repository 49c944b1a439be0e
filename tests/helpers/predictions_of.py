"""Class predictions from given probabilities."""

import numpy as np

from pets_core.evaluation.predictions import PredictionsInfo
from pets_core.records.dataset import ClassInfo
from pets_core.targets.classes.predictions import ClassPredictions

__all__ = ["info_of", "predictions_of"]


def info_of(names: list[str], **about: object) -> PredictionsInfo:
    """Return the metadata of a predictions file; `about` overrides fields."""
    fields = {
        "vocabulary": tuple(ClassInfo(name=name) for name in names), "split": "test",
        "model_url": "a/model", "backbone": "resnet34", "image_size": 64,
        "dataset_url": "nowhere/pets/f", "dataset_name": "pets", "dataset_fingerprint": "f",
    } | about  # fmt: skip
    return PredictionsInfo.model_validate(fields)


def predictions_of(
    info: PredictionsInfo, ids: list[str], targets: np.ndarray, probabilities: np.ndarray
) -> ClassPredictions:
    """Return class predictions with the losses of the given probabilities."""
    own = np.take_along_axis(probabilities, targets[:, None], 1)[:, 0]
    losses = -np.log(np.maximum(own, np.finfo(np.float32).tiny))
    return ClassPredictions(info, ids, targets, probabilities, losses)
