"""Numbers: one or several a sample, on a scale that is open or bounded."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from pets_core.records.training import MetricInfo

__all__ = ["Regression", "widened"]

_MARGIN = 0.1
_LOSSES: dict[str, Callable[..., Tensor]] = {
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    # Squared below an error of 1, linear above it (Girshick 2015, arXiv:1504.08083).
    "smooth_l1": F.smooth_l1_loss,
}


class Regression:
    """Error of predictions that a sigmoid holds within a range, if there is one.

    Logits and targets are float32 of one shape, (B,) or (B, D), targets in their own units. The
    metric is the root of the mean squared error over all of them.

    Args:
        y_range: Least and greatest prediction; None: predictions are mean + std * logits.
        loss: Of errors told in `std`.
        mean: Of each number, (D,) or one for all.
        std: Standard deviation of each number.
        unit: Of the numbers.
        alike: Whether all numbers have one unit; else the metric is in `std`, too.
    """

    def __init__(
        self,
        y_range: tuple[float, float] | None = None,
        *,
        loss: Literal["mse", "l1", "smooth_l1"] = "mse",
        mean: Tensor | float = 0.0,
        std: Tensor | float = 1.0,
        unit: str = "",
        alike: bool = True,
    ) -> None:
        self._y_range, self._loss = y_range, _LOSSES[loss]
        self._mean, self._std, self._alike = mean, std, alike
        self._unit = unit if alike else "SD"

    @property
    def metric(self) -> MetricInfo:
        """RMSE."""
        return MetricInfo(name="RMSE", unit=self._unit)

    def loss_sum(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Errors, the mean over a sample's numbers, summed over the samples."""
        assert logits.shape == targets.shape, "they would be broadcast"
        predicted = self.activation(logits) / self._std
        return _summed(self._loss(predicted, targets.float() / self._std, reduction="none"))

    def valid_loss_sum(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The same."""
        return self.loss_sum(logits, targets)

    def metric_sum(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Squared errors: the root is taken of their mean over a split."""
        errors = self.activation(logits) - targets.float()
        return _summed((errors if self._alike else errors / self._std).square())

    def metric_value(self, mean: float) -> float:
        """Root mean squared error."""
        return math.sqrt(mean)

    def activation(self, logits: Tensor) -> Tensor:
        """Predictions in the targets' units."""
        if self._y_range is None:
            return self._mean + self._std * logits.float()
        low, high = self._y_range
        return low + (high - low) * logits.float().sigmoid()


def widened(y_range: tuple[float, float]) -> tuple[float, float]:
    """A range a tenth wider at either end, for a sigmoid never comes to its ends.

    As in fastai's lesson on collaborative filtering (Howard and Gugger 2020, chapter 8).
    """
    low, high = y_range
    return low - _MARGIN * (high - low), high + _MARGIN * (high - low)


def _summed(each: Tensor) -> Tensor:
    return each.flatten(1).mean(1).sum() if each.ndim > 1 else each.sum()
