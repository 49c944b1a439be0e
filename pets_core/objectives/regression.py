"""Numbers: one or several a sample, on a scale that is open or bounded."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

__all__ = ["Regression"]


class Regression:
    """Squared error of predictions that a sigmoid holds within a range, if there is one.

    Logits and targets are float32 of one shape, (B,) or (B, D), targets in their own units. The
    metric is the root of the mean squared error over all of them.

    Args:
        y_range: Least and greatest prediction; None: logits are the predictions.
    """

    metric = "RMSE"

    def __init__(self, y_range: tuple[float, float] | None = None) -> None:
        self._y_range = y_range

    def loss_sum(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Squared errors, the mean over a sample's numbers, summed over the samples."""
        assert logits.shape == targets.shape, "they would be broadcast"
        errors = F.mse_loss(self.activation(logits), targets.float(), reduction="none")
        return errors.flatten(1).mean(1).sum() if errors.ndim > 1 else errors.sum()

    def valid_loss_sum(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The same."""
        return self.loss_sum(logits, targets)

    def error_sum(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The same: the root is taken of the mean over a split."""
        return self.loss_sum(logits, targets)

    def error(self, mean: float) -> float:
        """Root mean squared error, in the targets' units."""
        return math.sqrt(mean)

    def activation(self, logits: Tensor) -> Tensor:
        """Predictions in the targets' units."""
        if self._y_range is None:
            return logits.float()
        low, high = self._y_range
        return low + (high - low) * logits.float().sigmoid()
