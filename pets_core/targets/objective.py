"""The interface of an objective: what the training loop minimises and validates with."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from pets_core.records.training import MetricInfo

__all__ = ["Objective"]


class Objective(Protocol):
    """Loss, activation and validation metric of one kind of task."""

    @property
    def metric(self) -> MetricInfo:
        """The validation metric: its name, direction and unit."""
        ...

    def loss_sum(self, logits: Tensor, targets: Tensor) -> Tensor:
        """What training minimises, summed over the samples: a scalar; 0 for an empty batch."""
        ...

    def valid_loss_sum(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss that runs are compared by, free of regularisation, summed over the samples."""
        ...

    def metric_sum(self, logits: Tensor, targets: Tensor) -> Tensor:
        """What the metric is worked out from, summed over the samples: a scalar."""
        ...

    def metric_value(self, mean: float) -> float:
        """The metric of a split, from the mean over its samples."""
        ...

    def activation(self, logits: Tensor) -> Tensor:
        """Logits to predictions."""
        ...
