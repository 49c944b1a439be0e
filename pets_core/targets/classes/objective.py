"""One class a sample."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pets_core.records.training import MetricInfo

__all__ = ["SingleLabel", "balanced_weights"]


class SingleLabel:
    """One class a sample: softmax and cross-entropy; the metric counts the wrong ones.

    Logits are (B, C); targets are class indices, int64 (B,), or in training shares of the classes,
    float32 (B, C).

    Args:
        label_smoothing: Share of each training target that is spread over all classes.
        class_weights: Weight of each class in the training loss, float32 (C,), on the device.
    """

    metric = MetricInfo(name="error rate", unit="%")

    def __init__(self, label_smoothing: float = 0.0, class_weights: Tensor | None = None) -> None:
        self._label_smoothing, self._class_weights = label_smoothing, class_weights

    def loss_sum(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy in nats with smoothed targets and weighted classes, summed."""
        return F.cross_entropy(
            logits.float(),
            targets,
            weight=self._class_weights,
            label_smoothing=self._label_smoothing,
            reduction="sum",
        )

    def valid_loss_sum(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy in nats, summed."""
        return F.cross_entropy(logits.float(), targets, reduction="sum")

    def metric_sum(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Samples whose most probable class is not the target."""
        return (logits.argmax(dim=1) != targets).sum()

    def metric_value(self, mean: float) -> float:
        """The share of them."""
        return mean

    def activation(self, logits: Tensor) -> Tensor:
        """Probabilities, each row summing to 1."""
        return logits.float().softmax(dim=1)


def balanced_weights(counts: Sequence[int]) -> Tensor:
    """Weights that give every class the same share of the loss, 1 on average over the samples.

    Args:
        counts: Training samples of each class; those of a class without any weigh 0.

    Returns:
        float32 (C,): n / (k * count), where k classes have samples (King and Zeng 2001).
    """
    numbers = torch.tensor(counts, dtype=torch.float32)
    present = numbers > 0
    weights = numbers.sum() / (present.sum() * numbers.clamp(min=1))
    return weights * present
