"""Frozen records of how a model of numbers did."""

from __future__ import annotations

from typing import Literal

from pets_core.records.base import Record
from pets_core.records.evaluation import SplitReport

__all__ = ["Interval", "NumberMeasures", "NumberTargets", "NumbersReport"]

NumberTargets = Literal["numbers", "points", "box"]
"""Those of `Targets` that are numbers."""


class Interval(Record):
    """A number, and the ends of its 95% confidence interval."""

    value: float
    low: float
    high: float


class NumberMeasures(Record):
    """How far predictions of one number are from what it is, in its unit.

    Attributes:
        name: What it is.
        unit: What it is told in; empty: none.
        mae: Mean absolute error.
        rmse: Root mean squared error.
        bias: Mean of predicted less actual.
        r2: Share of the variance of the photos judged that is explained; None where they are all
            alike.
        median: Median absolute error.
        p95: 95th percentile of the absolute errors.
        baseline_mae: Of one who always says the mean of the training photos.
        baseline_rmse: Of the same.
    """

    name: str
    unit: str
    mae: float
    rmse: float
    bias: float
    r2: float | None
    median: float
    p95: float
    baseline_mae: float
    baseline_rmse: float


class NumbersReport(SplitReport):
    """How a model of numbers did on one split.

    Attributes:
        targets: What the numbers are.
        mae: Mean absolute error over photos and numbers.
        rmse: Root of the mean squared error over photos and numbers, whatever their units.
        baseline_rmse: Of one who always says the means of the training photos.
        numbers: Of each number.
        mean_iou: Mean intersection over union of the boxes; None unless boxes are told.
        share_iou_half: Share of photos where it is 0.5 or more.
        baseline_mean_iou: Of one who always says the means.
        median_pixels: Median distance of a point from where it is, pixels of the upright photo;
            None unless points are told, and where the sizes of the photos are out of reach.
        p95_pixels: 95th percentile of these distances.
        baseline_median_pixels: Of one who always says the means.
    """

    targets: NumberTargets
    mae: Interval
    rmse: Interval
    baseline_rmse: float
    numbers: tuple[NumberMeasures, ...]
    mean_iou: float | None = None
    share_iou_half: float | None = None
    baseline_mean_iou: float | None = None
    median_pixels: float | None = None
    p95_pixels: float | None = None
    baseline_median_pixels: float | None = None

    @property
    def unit(self) -> str:
        """What errors over all numbers are told in, with a space before it; empty: no one unit."""
        if self.targets != "numbers":
            return " of half a side"
        units = {number.unit for number in self.numbers}
        return "".join(f" {unit}" for unit in units if unit) if len(units) == 1 else ""

    @property
    def headline(self) -> str:
        """How the model did, as people say it first."""
        if self.mean_iou is not None:
            return f"Mean IoU {self.mean_iou:.3f}"
        if self.median_pixels is not None:
            return f"Half of the points within {self.median_pixels:.3g} pixels"
        several = len({number.unit for number in self.numbers}) > 1
        over = " over numbers in several units" if several else ""
        return f"RMSE {self.rmse.value:.4g}{self.unit}{over}"

    @property
    def baseline(self) -> str:
        """The figure of the headline, of one who always says the means of the training photos."""
        if self.baseline_mean_iou is not None:
            return f"{self.baseline_mean_iou:.3f}"
        if self.baseline_median_pixels is not None:
            return f"{self.baseline_median_pixels:.3g} pixels"
        return f"{self.baseline_rmse:.4g}{self.unit}"

    @property
    def details(self) -> tuple[str, ...]:
        """The figures behind the headline, a sentence each."""
        said = [
            f"RMSE {self.rmse.value:.4g}{self.unit}, 95% interval {self.rmse.low:.4g} to "
            f"{self.rmse.high:.4g}; {self.baseline_rmse:.4g} of one who always says the mean.",
            f"MAE {self.mae.value:.4g}{self.unit}, {self.mae.low:.4g} to {self.mae.high:.4g}.",
        ]
        if self.share_iou_half is not None:
            said.append(f"{self.share_iou_half:.1%} of the boxes have an IoU of 0.5 or more.")
        if self.p95_pixels is not None:
            said.append(f"19 of 20 points lie within {self.p95_pixels:.3g} pixels.")
        return tuple(said)

    @property
    def cautions(self) -> tuple[str, ...]:
        """What is to be known before anybody relies on the model; often nothing."""
        said = []
        # Beside each number's own baseline, for grams outweigh years.
        beside = [n.rmse / n.baseline_rmse for n in self.numbers if n.baseline_rmse]
        if sum(ratio**2 for ratio in beside) >= len(beside):
            said.append(
                "The model is no better than always saying the mean of the training photos."
            )
        return (*said, *self.training_cautions)
