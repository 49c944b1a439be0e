"""Places on a photo: the kinds `points` (keypoints) and `box` (a bounding box)."""

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
from pets_core.records.target_spec import BUILT_IN
from pets_core.targets.base import Predicted
from pets_core.targets.coordinates.drawing import draw_on_jpeg, photo_sizes
from pets_core.targets.coordinates.metrics import box_iou, distances, pixel_distances
from pets_core.targets.regression.target import Numbers, NumbersEvaluator

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pets_core.targets.objective import Objective

__all__ = ["BOX", "POINTS", "Box", "BoxEvaluator", "Points", "PointsEvaluator"]

_FOUND = 0.5
_OUTLIER = 3.5
_SCALE = " Coordinates go from -1 at the photo's left and upper edge to 1 at the others."

Floats = NDArray[np.float64]


class _CoordinatesEvaluator(NumbersEvaluator):
    """What keypoints and boxes share: they are drawn, and outliers are found by their distance."""

    shape: ClassVar[Literal["points", "box"]]

    @property
    def has_one_unit(self) -> bool:
        """Coordinates have one scale."""
        return True

    @property
    def unit(self) -> str:
        """They have no unit."""
        return ""

    def text(self, values: NDArray[Any]) -> str:
        """Return the first coordinates of a photo; all of them are drawn."""
        shown = [f"{value:.2f}" for value in values[:6]]
        return "; ".join([*shown, f"and {len(values) - 6} more"] if len(values) > 6 else shown)

    def draw(self, predictions: Predictions, row: int, jpeg: bytes) -> bytes:
        """Draw the actual and the predicted places."""
        actual, predicted = predictions.targets[row], predictions.outputs[row]
        return draw_on_jpeg(jpeg, self.shape, actual, predicted)

    def issues(self) -> Any:
        """Return photos whose distance is an outlier among the validation photos.

        Of the logarithms of the distances, those more than 3.5 robust standard deviations above the
        median (Iglewicz and Hoaglin 1993).
        """
        import pandas as pd

        if self.validation is None:
            return None
        off = distances(self.validation.targets, self.validation.outputs).mean(1)
        logs = np.log(np.maximum(off, np.finfo(np.float32).eps))
        centre = np.median(logs)
        spread = 1.4826 * np.median(np.abs(logs - centre))
        score = (logs - centre) / spread if spread > 0 else np.zeros(len(logs))
        rows = [row for row in np.argsort(-score, kind="stable") if score[row] > _OUTLIER]
        return pd.DataFrame(
            {
                "id": [self.validation.ids[row] for row in rows],
                "distance": off[rows] / 2,
                "quality": 1 / (1 + score[rows]),
            }
        )


class PointsEvaluator(_CoordinatesEvaluator):
    """Evaluates predicted keypoints: their distance, as a share of the photo's side."""

    shape = "points"
    legend = " Green circles: actual. Orange crosses: predicted." + _SCALE

    @cached_property
    def _sizes(self) -> NDArray[np.int64] | None:
        return photo_sizes(self.info.dataset_url, self.predictions.ids)

    @cached_property
    def photo_errors(self) -> Floats:
        """Return the mean distance of each photo's points, in shares of its sides."""
        predictions = self.predictions
        found: Floats = distances(predictions.targets, predictions.outputs).mean(1) / 2
        return found

    def detail(self, row: int) -> str:
        """Return the mean distance of a photo's points."""
        predictions = self.predictions
        if self._sizes is None:
            return f"{self.photo_errors[row]:.1%} of a side"
        own = slice(row, row + 1)
        off = pixel_distances(predictions.targets[own], predictions.outputs[own], self._sizes[own])
        return f"{off.mean():.3g} pixels"

    def score(self) -> ScoredSamples:
        """Return the mean distance of each photo's points."""
        baseline = float(distances(self.predictions.targets, self.baseline).mean() / 2)
        return self.summarize(POINTS, self.photo_errors, unit="% of a side", baseline=baseline)

    def metrics(self) -> list[Metric]:
        """Return distances in pixels of the upright photo, where the photos are in reach."""
        if self._sizes is None:
            return []
        actual = self.predictions.targets
        off = pixel_distances(actual, self.predictions.outputs, self._sizes)
        baseline = pixel_distances(actual, self.baseline, self._sizes)
        return [
            Metric(name=name, unit="pixels", value=float(np.quantile(off, share)),
                   baseline=float(np.quantile(baseline, share)))
            for name, share in (("median distance", 0.5), ("95th percentile of distances", 0.95))
        ]  # fmt: skip


class BoxEvaluator(_CoordinatesEvaluator):
    """Evaluates predicted boxes: their intersection over union with the actual ones."""

    shape = "box"
    legend = " Whole green line: actual. Broken orange line: predicted." + _SCALE

    @cached_property
    def _iou(self) -> Floats:
        return box_iou(self.predictions.targets, self.predictions.outputs)

    @cached_property
    def photo_errors(self) -> Floats:
        """Return 1 - IoU and, so that of boxes apart the farthest is worst, their distance."""
        off: Floats = distances(self.predictions.targets, self.predictions.outputs).mean(1)
        return 1 - self._iou + np.where(self._iou == 0, off, 0)

    def detail(self, row: int) -> str:
        """Return the IoU of a photo's box."""
        return f"IoU {self._iou[row]:.2f}"

    def score(self) -> ScoredSamples:
        """Return the IoU of each photo's box."""
        baseline = float(box_iou(self.predictions.targets, self.baseline).mean())
        return self.summarize(BOX, self._iou, baseline=baseline)

    def metrics(self) -> list[Metric]:
        """Return the share of boxes that are found, by the custom of PASCAL VOC."""
        found = (self._iou >= _FOUND).astype(np.float64)
        interval: Interval = bootstrap_interval(np.mean, found)
        return [
            Metric(name="IoU of 0.5 or more", higher_is_better=True, unit="%",
                   **interval.model_dump())
        ]  # fmt: skip


class _Coordinates(Numbers):
    """Coordinates from -1 to 1 on the photo, which people read in its pixels."""

    def objective(
        self,
        card: ModelCard,
        config: TrainConfig,
        class_counts: Sequence[int],
        device: torch.device,
    ) -> Objective:
        """Return regression within the photo and its surroundings."""
        from pets_core.data.loading.transforms import REACH
        from pets_core.targets.coordinates.objective import Boxes, Keypoints

        kind = Boxes if self.spec.geometry == "box" else Keypoints
        return kind(REACH, loss=config.number_loss)

    def decode(self, card: ModelCard, logits: Tensor, maps: Tensor | None = None) -> Tensor:
        """Return coordinates on the photo, corners of a box in order."""
        import torch

        from pets_core.data.loading.loader import move_coordinates

        found = self.objective(card, TrainConfig(), (), logits.device).activation(logits)
        if maps is not None:
            return move_coordinates(found, maps, self.spec.geometry or "points").clamp(-1, 1)
        if self.spec.geometry == "box":
            # As `move_box` orders the corners of a box that is moved.
            one, other = found.chunk(2, 1)
            found = torch.cat([torch.minimum(one, other), torch.maximum(one, other)], 1)
        # By hand, for onnxruntime does not run the export of `move_box`.
        side, size = card.resize_to, card.image_size
        centre = (2 * ((side - size) // 2) + size) / side - 1
        return (found * (size / side) + centre).clamp(-1, 1)

    def values(self, predicted: Predicted) -> NDArray[np.float64]:
        """Return pixels of the upright photo, from its upper left, (N, D)."""
        outputs = predicted.outputs.astype(np.float64)
        return (outputs + 1) / 2 * np.tile(predicted.sizes, outputs.shape[1] // 2)


class Points(_Coordinates):
    """Keypoints, x and y of each in turn. Outputs are coordinates from -1 to 1."""

    name = "points"
    spec = BUILT_IN["points"]
    metric = "mean distance"
    evaluator = PointsEvaluator

    def schema(self, info: PredictionsInfo) -> pa.Schema:
        """Columns as of numbers, of x and y in turn."""
        if len(info.numbers) % 2:
            raise PetsError(f"keypoints have an x and a y each, not {len(info.numbers)} numbers")
        return super().schema(info)


class Box(_Coordinates):
    """A bounding box: xmin, ymin, xmax, ymax. Outputs are coordinates from -1 to 1."""

    name = "box"
    spec = BUILT_IN["box"]
    metric = "mean IoU"
    metric_range = (0.0, 1.0)
    higher_is_better = True
    evaluator = BoxEvaluator

    def schema(self, info: PredictionsInfo) -> pa.Schema:
        """Columns as of numbers, of four coordinates."""
        if len(info.numbers) != 4:
            raise PetsError(f"a box has 4 numbers, not {len(info.numbers)}")
        return super().schema(info)


POINTS, BOX = Points(), Box()
