"""Objective for numbers: regression, optionally within a range."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from pets_core.records.training import MetricInfo

__all__ = ["Regression", "widen_range"]

_MARGIN = 0.1
_LOSSES: dict[str, Callable[..., Tensor]] = {
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    # Squared below an error of 1, linear above (Girshick, 2015, arXiv:1504.08083).
    "smooth_l1": F.smooth_l1_loss,
}


class Regression:
    """Regression loss and RMSE, with a sigmoid that bounds the predictions if `y_range` is set.

    Logits and targets are float32 of equal shape, (B,) or (B, D); targets are in their own units.

    Args:
        y_range: Minimum and maximum prediction; None: predictions are mean + std * logits.
        loss: Loss of errors in units of `std`.
        mean: Mean of each number, (D,), or one for all.
        std: Standard deviation of each number, (D,), or one for all.
        unit: Unit of the numbers.
        has_one_unit: Whether all numbers have the same unit; if not, the metric is in units of
            `std`.
    """

    def __init__(
        self,
        y_range: tuple[float, float] | None = None,
        *,
        loss: Literal["mse", "l1", "smooth_l1"] = "mse",
        mean: Tensor | float = 0.0,
        std: Tensor | float = 1.0,
        unit: str = "",
        has_one_unit: bool = True,
    ) -> None:
        self._y_range, self._loss = y_range, _LOSSES[loss]
        self._mean, self._std, self._has_one_unit = mean, std, has_one_unit
        self._unit = unit if has_one_unit else "SD"

    @property
    def metric(self) -> MetricInfo:
        """RMSE."""
        return MetricInfo(name="RMSE", unit=self._unit)

    def loss_sum(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss, averaged over a sample's numbers and summed over the samples."""
        assert logits.shape == targets.shape, "shapes differ and would be broadcast"
        predicted = self.activation(logits) / self._std
        return _summed(self._loss(predicted, targets.float() / self._std, reduction="none"))

    def valid_loss_sum(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the training loss, which has no regularisation."""
        return self.loss_sum(logits, targets)

    def metric_sum(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the squared errors, averaged over a sample's numbers and summed."""
        errors = self.activation(logits) - targets.float()
        return _summed((errors if self._has_one_unit else errors / self._std).square())

    def metric_value(self, mean: float) -> float:
        """Return the root mean squared error."""
        return math.sqrt(mean)

    def activation(self, logits: Tensor) -> Tensor:
        """Return predictions in the targets' units."""
        if self._y_range is None:
            return self._mean + self._std * logits.float()
        low, high = self._y_range
        return low + (high - low) * logits.float().sigmoid()


def widen_range(y_range: tuple[float, float]) -> tuple[float, float]:
    """Extend a range by a tenth at either end, since a sigmoid never reaches its bounds.

    As in fastai's lesson on collaborative filtering (Howard and Gugger, 2020, chapter 8).
    """
    low, high = y_range
    return low - _MARGIN * (high - low), high + _MARGIN * (high - low)


def _summed(each: Tensor) -> Tensor:
    return each.flatten(1).mean(1).sum() if each.ndim > 1 else each.sum()
