"""Objective for tags: sigmoid and binary cross-entropy."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pets_core.records.training import MetricInfo

__all__ = ["MultiLabel"]


class MultiLabel:
    """Sigmoid and binary cross-entropy for any number of tags per sample, including none.

    Logits are (B, C). Targets are float32 (B, C): 1 for each tag of a sample, 0 for each other tag,
    and values in between for mixed samples. The metric is the mean F1 over the samples at a
    threshold of 0.5, as scikit-learn's `f1_score(average="samples")`; a sample without actual and
    predicted tags scores 1.

    Args:
        label_smoothing: Share of each training target that is moved to 0.5.
    """

    metric = MetricInfo(name="F1 per photo", higher_is_better=True, unit="%")

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self._label_smoothing = label_smoothing

    def loss_sum(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return smoothed cross-entropy in nats, averaged over tags, summed over samples."""
        smooth = self._label_smoothing
        return self.valid_loss_sum(logits, targets * (1 - smooth) + smooth / 2)

    def valid_loss_sum(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return cross-entropy in nats, averaged over tags, summed over samples."""
        each = F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none")
        return each.mean(1).sum()

    def metric_sum(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the F1 of each sample's tags, summed over the samples."""
        predicted, actual = logits > 0, targets > 0.5
        correct = (predicted & actual).sum(1)
        total = predicted.sum(1) + actual.sum(1)
        return torch.where(total == 0, 1.0, 2 * correct / total.clamp(min=1)).sum()

    def metric_value(self, mean: float) -> float:
        """Return the mean F1."""
        return mean

    def activation(self, logits: Tensor) -> Tensor:
        """Return the probability of each tag."""
        return logits.float().sigmoid()
