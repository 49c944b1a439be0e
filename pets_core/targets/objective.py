"""Interface of a training objective: loss, activation and validation metric."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from pets_core.records.training import MetricInfo

__all__ = ["Objective"]


class Objective(Protocol):
    """Loss, activation and validation metric of one kind of target."""

    @property
    def metric(self) -> MetricInfo:
        """Name, direction and unit of the validation metric."""

    def loss_sum(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the training loss summed over the samples, a scalar; 0 for an empty batch."""

    def valid_loss_sum(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the validation loss, without regularisation, summed over the samples."""

    def metric_sum(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the statistic behind the metric summed over the samples, a scalar."""

    def metric_value(self, mean: float) -> float:
        """Return the metric of a split from the mean of the statistic over its samples."""

    def activation(self, logits: Tensor) -> Tensor:
        """Return the predictions for logits."""
