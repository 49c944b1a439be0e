"""Objective for classes: softmax and cross-entropy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pets_core.records.training import MetricInfo

__all__ = ["SingleLabel", "balanced_weights"]


class SingleLabel:
    """Softmax, cross-entropy and error rate for one class per sample.

    Logits are (B, C). Targets are class indices, int64 (B,), or class probabilities in training,
    float32 (B, C).

    Args:
        label_smoothing: Share of each training target that is spread over all classes.
        class_weights: Weight of each class in the training loss, float32 (C,), on the device.
    """

    metric = MetricInfo(name="error rate", unit="%")

    def __init__(self, label_smoothing: float = 0.0, class_weights: Tensor | None = None) -> None:
        self._label_smoothing, self._class_weights = label_smoothing, class_weights

    def loss_sum(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the summed cross-entropy in nats, with smoothed targets and class weights."""
        return F.cross_entropy(
            logits.float(),
            targets,
            weight=self._class_weights,
            label_smoothing=self._label_smoothing,
            reduction="sum",
        )

    def valid_loss_sum(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the summed cross-entropy in nats."""
        return F.cross_entropy(logits.float(), targets, reduction="sum")

    def metric_sum(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the number of misclassified samples."""
        return (logits.argmax(dim=1) != targets).sum()

    def metric_value(self, mean: float) -> float:
        """Return the error rate."""
        return mean

    def activation(self, logits: Tensor) -> Tensor:
        """Return probabilities; each row sums to 1."""
        return logits.float().softmax(dim=1)


def balanced_weights(counts: Sequence[int]) -> Tensor:
    """Return class weights that give every class the same share of the loss.

    The mean weight over the training samples is 1.

    Args:
        counts: Number of training samples of each class; a class without samples has weight 0.

    Returns:
        float32 (C,): n / (k * count), where k classes have samples (King and Zeng, 2001).
    """
    numbers = torch.tensor(counts, dtype=torch.float32)
    present = numbers > 0
    weights = numbers.sum() / (present.sum() * numbers.clamp(min=1))
    return weights * present
