"""What a model is trained for: loss, activation and metrics, one small object each."""

from __future__ import annotations

from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

__all__ = ["Objective", "SingleLabel"]


class Objective(Protocol):
    """All that the training loop knows of a task."""

    def loss_sum(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Loss summed over the samples, a scalar; 0 for an empty batch."""
        ...

    def error_sum(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The validation metric summed over the samples, a scalar; lower is better."""
        ...

    def activation(self, logits: Tensor) -> Tensor:
        """Logits to predictions."""
        ...


class SingleLabel:
    """One class a sample: softmax and cross-entropy; the metric counts the wrong ones.

    Logits are (B, C), targets int64 (B,).
    """

    def loss_sum(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy in nats, summed."""
        return F.cross_entropy(logits.float(), targets, reduction="sum")

    def error_sum(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Samples whose most probable class is not the target."""
        return (logits.argmax(dim=1) != targets).sum()

    def activation(self, logits: Tensor) -> Tensor:
        """Probabilities, each row summing to 1."""
        return logits.float().softmax(dim=1)
