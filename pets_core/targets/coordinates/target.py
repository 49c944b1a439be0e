"""Kinds of targets `points` (keypoints) and `box` (a bounding box)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pets_core.config.train import TrainConfig
from pets_core.errors import PetsError
from pets_core.evaluation.compare import ScoredSamples
from pets_core.evaluation.intervals import bootstrap_interval
from pets_core.evaluation.predictions import Predictions, PredictionsInfo
from pets_core.models.card import ModelCard
from pets_core.records.evaluation import Interval, Metric
from pets_core.records.target_spec import BUILT_IN_SPECS
from pets_core.targets.base import DecodedOutputs
from pets_core.targets.coordinates.drawing import draw_on_jpeg, read_photo_sizes
from pets_core.targets.coordinates.metrics import box_iou, distances, pixel_distances
from pets_core.targets.regression.target import Numbers, NumbersEvaluator

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pets_core.targets.objective import Objective

__all__ = ["BOX", "POINTS", "Box", "BoxEvaluator", "Points", "PointsEvaluator"]

_MIN_IOU = 0.5
_OUTLIER = 3.5
_SCALE = " Coordinates range from -1 (left, top) to 1 (right, bottom)."

Floats = NDArray[np.float64]


class _CoordinatesEvaluator(NumbersEvaluator):
    """Base class for keypoints and boxes: drawings, and label issues by distance."""

    shape: ClassVar[Literal["points", "box"]]

    def format_values(self, values: NDArray[Any]) -> str:
        """Format up to 6 coordinates of a photo, then "and N more"."""
        shown = [f"{value:.2f}" for value in values[:6]]
        return "; ".join([*shown, f"and {len(values) - 6} more"] if len(values) > 6 else shown)

    def draw(self, predictions: Predictions, row: int, jpeg: bytes) -> bytes:
        """Draw the actual and predicted coordinates on the photo of a row."""
        actual, predicted = predictions.targets[row], predictions.outputs[row]
        return draw_on_jpeg(jpeg, self.shape, actual, predicted)

    def issues(self) -> Any:
        """Return validation photos with an outlying distance; None without validation photos.

        Outliers are logarithms of distances more than 3.5 robust standard deviations above the
        median (Iglewicz and Hoaglin, 1993).
        """
        import pandas as pd

        if self.validation is None:
            return None
        distance = distances(self.validation.targets, self.validation.outputs).mean(1)
        logs = np.log(np.maximum(distance, np.finfo(np.float32).eps))
        centre = np.median(logs)
        spread = 1.4826 * np.median(np.abs(logs - centre))
        score = (logs - centre) / spread if spread > 0 else np.zeros(len(logs))
        rows = [row for row in np.argsort(-score, kind="stable") if score[row] > _OUTLIER]
        return pd.DataFrame(
            {
                "id": [self.validation.ids[row] for row in rows],
                "distance": distance[rows] / 2,
                "quality": 1 / (1 + score[rows]),
            }
        )


class PointsEvaluator(_CoordinatesEvaluator):
    """Evaluates predicted keypoints by their distance, as a share of the photo's side."""

    shape = "points"
    legend = " Green circles: actual. Orange crosses: predicted." + _SCALE

    @cached_property
    def _sizes(self) -> NDArray[np.int64] | None:
        return read_photo_sizes(self.info.dataset_url, self.predictions.ids)

    @cached_property
    def photo_errors(self) -> Floats:
        """Mean distance of each photo's points, as a share of its side, (N,)."""
        predictions = self.predictions
        errors: Floats = distances(predictions.targets, predictions.outputs).mean(1) / 2
        return errors

    def format_error(self, row: int) -> str:
        """Format the mean distance of a photo's points."""
        actual, predicted = self.predictions.targets, self.predictions.outputs
        if self._sizes is None:
            return f"{self.photo_errors[row]:.1%} of a side"
        own = slice(row, row + 1)
        pixels = pixel_distances(actual[own], predicted[own], self._sizes[own])
        return f"{pixels.mean():.3g} pixels"

    def score(self) -> ScoredSamples:
        """Return the mean distance; the score of a photo is the mean over its points."""
        baseline = float(distances(self.predictions.targets, self.baseline).mean() / 2)
        return self.summarize(POINTS, self.photo_errors, unit="% of a side", baseline=baseline)

    def metrics(self) -> list[Metric]:
        """Return distances in pixels of the upright photo; empty if the sizes are unknown."""
        if self._sizes is None:
            return []
        actual = self.predictions.targets
        pixels = pixel_distances(actual, self.predictions.outputs, self._sizes)
        baseline = pixel_distances(actual, self.baseline, self._sizes)
        return [
            Metric(name=name, unit="pixels", value=float(np.quantile(pixels, share)),
                   baseline=float(np.quantile(baseline, share)))
            for name, share in (("median distance", 0.5), ("95th percentile of distances", 0.95))
        ]  # fmt: skip


class BoxEvaluator(_CoordinatesEvaluator):
    """Evaluates predicted boxes by their intersection over union with the actual boxes."""

    shape = "box"
    legend = " Solid green line: actual. Dashed orange line: predicted." + _SCALE

    @cached_property
    def _iou(self) -> Floats:
        return box_iou(self.predictions.targets, self.predictions.outputs)

    @cached_property
    def photo_errors(self) -> Floats:
        """1 - IoU of each photo, plus the distance of disjoint boxes to rank them, (N,)."""
        distance: Floats = distances(self.predictions.targets, self.predictions.outputs).mean(1)
        return 1 - self._iou + np.where(self._iou == 0, distance, 0)

    def format_error(self, row: int) -> str:
        """Format the IoU of a photo's box."""
        return f"IoU {self._iou[row]:.2f}"

    def score(self) -> ScoredSamples:
        """Return the mean IoU; the score of a photo is its IoU."""
        baseline = float(box_iou(self.predictions.targets, self.baseline).mean())
        return self.summarize(BOX, self._iou, baseline=baseline)

    def metrics(self) -> list[Metric]:
        """Return the share of boxes with an IoU of 0.5 or more, as PASCAL VOC."""
        detected = (self._iou >= _MIN_IOU).astype(np.float64)
        interval: Interval = bootstrap_interval(np.mean, detected)
        return [
            Metric(name="IoU of 0.5 or more", higher_is_better=True, unit="%",
                   **interval.model_dump())
        ]  # fmt: skip


class _Coordinates(Numbers):
    """Coordinates on the photo from -1 to 1; predictions are shown in pixels."""

    def objective(
        self,
        card: ModelCard,
        config: TrainConfig,
        class_counts: Sequence[int],
        device: torch.device,
    ) -> Objective:
        """Return the regression objective; coordinates are bounded by `COORDINATE_RANGE`."""
        from pets_core.data.loading.transforms import COORDINATE_RANGE
        from pets_core.targets.coordinates.objective import Boxes, Keypoints

        kind = Boxes if self.spec.geometry == "box" else Keypoints
        return kind(COORDINATE_RANGE, loss=config.number_loss)

    def decode(self, card: ModelCard, logits: Tensor, maps: Tensor | None = None) -> Tensor:
        """Decode logits to coordinates on the photo, with the corners of a box in order."""
        import torch

        from pets_core.data.loading.loader import transform_coordinates

        coordinates = self.objective(card, TrainConfig(), (), logits.device).activation(logits)
        if maps is not None:
            return transform_coordinates(coordinates, maps, self.spec.geometry or "points").clamp(
                -1, 1
            )
        if self.spec.geometry == "box":
            # Same order of corners as `transform_box`.
            one, other = coordinates.chunk(2, 1)
            coordinates = torch.cat([torch.minimum(one, other), torch.maximum(one, other)], 1)
        # Not `transform_box`: onnxruntime cannot run its export.
        side, size = card.resize_to, card.image_size
        centre = (2 * ((side - size) // 2) + size) / side - 1
        return (coordinates * (size / side) + centre).clamp(-1, 1)

    def values(self, predicted: DecodedOutputs) -> NDArray[np.float64]:
        """Return pixels of the upright photo from its top left corner, (N, D)."""
        outputs = predicted.outputs.astype(np.float64)
        return (outputs + 1) / 2 * np.tile(predicted.sizes, outputs.shape[1] // 2)


class Points(_Coordinates):
    """Keypoints, alternating x and y; outputs are coordinates from -1 to 1."""

    name = "points"
    spec = BUILT_IN_SPECS["points"]
    metric = "mean distance"
    evaluator = PointsEvaluator

    def schema(self, info: PredictionsInfo) -> pa.Schema:
        """Return the columns, after checking that the numbers are pairs of x and y."""
        if len(info.numbers) % 2:
            raise PetsError(f"keypoints need an x and a y each, got {len(info.numbers)} numbers")
        return super().schema(info)


class Box(_Coordinates):
    """A bounding box xmin, ymin, xmax, ymax; outputs are coordinates from -1 to 1."""

    name = "box"
    spec = BUILT_IN_SPECS["box"]
    metric = "mean IoU"
    metric_range = (0.0, 1.0)
    higher_is_better = True
    evaluator = BoxEvaluator

    def schema(self, info: PredictionsInfo) -> pa.Schema:
        """Return the columns, after checking that there are four numbers."""
        if len(info.numbers) != 4:
            raise PetsError(f"a box needs 4 numbers, got {len(info.numbers)}")
        return super().schema(info)


POINTS, BOX = Points(), Box()
