"""Objectives for keypoints and boxes, in coordinates of the model's view."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import box_iou

from pets_core.records.training import MetricInfo
from pets_core.targets.regression.objective import Regression

__all__ = ["Boxes", "Keypoints"]


class Keypoints(Regression):
    """Regression of keypoints, alternating x and y from -1 to 1.

    The metric is the mean distance as a share of the side of the model's view; the evaluation uses
    the side of the photo.
    """

    metric = MetricInfo(name="mean distance", unit="% of a side")

    def metric_sum(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean distance of each sample's points, summed over the samples."""
        steps = (self.activation(logits) - targets.float()).reshape(len(targets), -1, 2)
        distances: Tensor = torch.linalg.vector_norm(steps, dim=2).mean(1)
        return distances.sum() / 2

    def metric_value(self, mean: float) -> float:
        """Return the mean distance."""
        return mean


class Boxes(Regression):
    """Regression of boxes, xmin, ymin, xmax and ymax from -1 to 1; the metric is the mean IoU."""

    metric = MetricInfo(name="mean IoU", higher_is_better=True)

    def metric_sum(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the IoU of each sample's box, summed over the samples."""
        one, other = self.activation(logits).chunk(2, 1)
        ordered = torch.cat([torch.minimum(one, other), torch.maximum(one, other)], 1)
        overlaps: Tensor = box_iou(ordered, targets.float()).diagonal()
        return overlaps.sum()

    def metric_value(self, mean: float) -> float:
        """Return the mean IoU."""
        return mean
