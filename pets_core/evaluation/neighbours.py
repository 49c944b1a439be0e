"""Predictions of the nearest neighbours among the training photos."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["predict_by_neighbours"]

_NEIGHBOURS = 20
_TEMPERATURE = 0.07
_BLOCK = 1024
"""Queries compared at a time; with a million training photos a block takes 4 GB."""


@torch.no_grad()
def predict_by_neighbours(
    queries: Tensor, features: Tensor, outputs: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Average the targets of the 20 training photos with the most similar features.

    Similarity is the cosine of the features, centred by row. The weights are softmax(similarity /
    0.07) (Wu and others 2018, "Unsupervised
    feature learning via non-parametric instance discrimination").

    Args:
        queries: Features of the photos to predict, float32 (M, D).
        features: Features of the training photos, float32 (N, D), on the same device.
        outputs: Targets of the training photos in the form of outputs, (N, C).

    Returns:
        Outputs, (M, C).
    """
    trained, own = _unit(features), torch.from_numpy(outputs).to(features.device)
    count = min(_NEIGHBOURS, len(trained))
    predicted: list[Tensor] = []
    for start in range(0, len(queries), _BLOCK):
        similarity, rows = (_unit(queries[start : start + _BLOCK]) @ trained.T).topk(count)
        weights = (similarity / _TEMPERATURE).softmax(1)
        predicted.append((weights[:, :, None] * own[rows]).sum(1))
    # An average may exceed its values by rounding, and a probability above 1 is refused.
    averages = torch.cat(predicted).clamp(own.amin(0), own.amax(0))
    result: NDArray[np.float32] = averages.cpu().numpy()
    return result


def _unit(features: Tensor) -> Tensor:
    """Centre and scale each row, as layer normalisation does, to unit length."""
    return F.normalize(features - features.mean(1, keepdim=True))
