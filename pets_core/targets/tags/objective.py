"""Any number of tags a sample, none included."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pets_core.records.training import MetricInfo

__all__ = ["MultiLabel"]


class MultiLabel:
    """Tags that are there or not, each by itself: sigmoid and binary cross-entropy.

    Logits are (B, C); targets are float32 (B, C), 1 for each tag that a sample has and 0 for each
    other, or shares in between where samples are mixed. The metric is the mean over the
    samples of the F1 of their tags, those with a probability above one half being given, as
    scikit-learn's `f1_score(average="samples")`; 1 where a sample has no tag and is given none.

    Args:
        label_smoothing: How much of each training target is moved to one half.
    """

    metric = MetricInfo(name="F1 per photo", higher_is_better=True, unit="%")

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self._label_smoothing = label_smoothing

    def loss_sum(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Binary cross-entropy in nats, the mean over a sample's tags, summed over the samples."""
        smooth = self._label_smoothing
        return self.valid_loss_sum(logits, targets * (1 - smooth) + smooth / 2)

    def valid_loss_sum(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The same, targets as they are."""
        each = F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none")
        return each.mean(1).sum()

    def metric_sum(self, logits: Tensor, targets: Tensor) -> Tensor:
        """F1 of each sample's tags, summed over the samples."""
        given, actual = logits > 0, targets > 0.5
        right = (given & actual).sum(1)
        either = given.sum(1) + actual.sum(1)
        return torch.where(either == 0, 1.0, 2 * right / either.clamp(min=1)).sum()

    def metric_value(self, mean: float) -> float:
        """The mean F1."""
        return mean

    def activation(self, logits: Tensor) -> Tensor:
        """The probability of each tag."""
        return logits.float().sigmoid()
