"""Predictions that a test makes up."""

import numpy as np

from pets_core.evaluation.predictions import Predictions, PredictionsInfo

__all__ = ["predictions_of"]


def predictions_of(
    info: PredictionsInfo, ids: list[str], targets: np.ndarray, probabilities: np.ndarray
) -> Predictions:
    """Predictions with the losses that these probabilities come to."""
    own = np.take_along_axis(probabilities, targets[:, None], 1)[:, 0]
    losses = -np.log(np.maximum(own, np.finfo(np.float32).tiny))
    return Predictions(info, ids, targets, probabilities, losses)
