"""Any number of tags a sample, none included."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["MultiLabel"]


class MultiLabel:
    """Tags that are there or not, each by itself: sigmoid and binary cross-entropy.

    Logits are (B, C); targets are float32 (B, C), 1 for each tag that a sample has and 0 for each
    other, or shares in between where samples are mixed. The metric is the share of pairs of a
    sample and a tag that are wrong when what is likelier than not counts: 1 - fastai's
    `accuracy_multi`.

    Args:
        label_smoothing: How much of each training target is moved to one half.
    """

    metric = "tag error rate"

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

    def error_sum(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The share of a sample's tags that are wrong, summed over the samples."""
        return ((logits > 0) != (targets > 0.5)).float().mean(1).sum()

    def error(self, mean: float) -> float:
        """The mean share of them."""
        return mean

    def activation(self, logits: Tensor) -> Tensor:
        """The probability of each tag."""
        return logits.float().sigmoid()
