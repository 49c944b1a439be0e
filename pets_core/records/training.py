"""Records of learning-rate finder, training and sweep."""

from __future__ import annotations

import math
from typing import Annotated, Literal, get_args

from pydantic import AliasChoices, BeforeValidator, Field

from pets_core.records.base import Record, SuggestionName

__all__ = [
    "EpochMetrics",
    "LRSuggestion",
    "MetricInfo",
    "Suggestions",
    "SweepResult",
    "TrainResult",
    "Trial",
]


class Suggestions(Record):
    """Learning rates read off the curve of a range test, by fastai's rules of the same names.

    None: the curve gives no suggestion.

    Attributes:
        minimum: A tenth of the rate of the lowest loss.
        steepest: Rate at which the loss falls fastest per decade.
        valley: Rate half-way down the longest descent of the loss.
        slide: Rate at which the slope settles, from the right (Nguyen's interval slide rule).
    """

    minimum: float | None = None
    steepest: float | None = None
    valley: float | None = None
    slide: float | None = None

    @property
    def limited(self) -> float | None:
        """`steepest`, at least `valley` and at most the geometric mean of `minimum` and `valley`.

        Noise can make the loss steepest at far too low a rate, and where it keeps falling, the
        steepest point is at too high a rate (docs/recipe.md).
        """
        if self.minimum is None or self.steepest is None or self.valley is None:
            return None
        highest = math.sqrt(self.minimum * self.valley)
        return min(max(self.steepest, self.valley), highest)

    @property
    def rates(self) -> dict[str, float]:
        """Suggested rates by name."""
        rates = {name: getattr(self, name) for name in get_args(SuggestionName)}
        return {name: rate for name, rate in rates.items() if rate is not None}


class LRSuggestion(Suggestions):
    """Result of the LR finder: the suggested learning rates, and the chosen one.

    Attributes:
        chosen: Learning rate of the chosen suggestion; `train.base_lr` if it is None.
        suggestion: Name of the chosen suggestion.
        num_steps: Optimizer steps before the loss diverged.
        seconds: Duration of the stage.
        curve_url: Learning rates and losses, Parquet.
        plot_url: Plot of the curve, PNG.
    """

    chosen: float
    suggestion: str
    num_steps: int
    seconds: float
    curve_url: str
    plot_url: str


class MetricInfo(Record):
    """Validation metric of an objective.

    Attributes:
        name: Name, such as "error rate".
        higher_is_better: Whether higher values are better.
        unit: "%" if the value is a share from 0 to 1; otherwise its unit; empty: none.
    """

    name: str
    higher_is_better: bool = False
    unit: str = ""

    def format(self, value: float) -> str:
        """Format a value of this metric with its unit."""
        if self.unit.startswith("%"):
            return f"{100 * value:.1f}{self.unit}"
        return f"{value:.4g} {self.unit}".rstrip()

    def score(self, value: float) -> float:
        """Return the value, negated if higher is better, so that lower is better."""
        return -value if self.higher_is_better else value


def _parse_old_metric(value: object) -> object:
    """Expand a metric stored by an earlier version, a name, to name and unit."""
    if isinstance(value, str):
        return {"name": value, "unit": "%" if value.endswith("error rate") else ""}
    return value


class EpochMetrics(Record):
    """Losses and validation metric of one epoch; None without a validation split."""

    phase: Literal["probe", "frozen", "unfrozen"]
    epoch: int
    """From 0; -1 for a probe, which has no epoch."""
    train_loss: float
    valid_loss: float | None = None
    valid_metric: Annotated[
        float | None,
        Field(validation_alias=AliasChoices("valid_metric", "valid_error", "valid_error_rate")),
    ] = None
    metric: Annotated[MetricInfo, BeforeValidator(_parse_old_metric)] = MetricInfo(
        name="error rate", unit="%"
    )
    """Name, direction and unit of `valid_metric`."""
    seconds: float
    photos_per_second: float

    @property
    def metric_text(self) -> str:
        """Validation metric with its unit; empty without a validation split."""
        return "" if self.valid_metric is None else self.metric.format(self.valid_metric)


class TrainResult(Record):
    """Result of a training; `model_url` has the best or the last weights, by `train.keep`.

    `probe_url` is the linear probe, to compare with or to start from; None if there is none.
    `epochs` starts with the probe if training started from it. `base_lr` is None without epochs.
    The unfrozen epochs trained the layer groups from `unfreeze_to` on; None: there were none.
    """

    model_url: str
    last_model_url: str
    best_model_url: str | None = None
    probe_url: str | None = None
    history_url: str
    plot_url: str
    base_lr: float | None
    mixed_precision: str
    device: str
    num_processes: int
    num_steps: int
    num_layer_groups: int = 0
    unfreeze_to: int | None = None
    epochs: tuple[EpochMetrics, ...]
    seconds: float

    @property
    def unfrozen_text(self) -> str:
        """Layer groups that the unfrozen epochs trained; empty: no such epochs, or one group."""
        if self.unfreeze_to is None or self.num_layer_groups < 2:
            return ""
        count = self.num_layer_groups - self.unfreeze_to
        part = "all" if self.unfreeze_to == 0 else f"the last {count} of"
        return f"{part} {self.num_layer_groups} layer groups"

    def kept_epoch(self, keep: Literal["last", "best"]) -> EpochMetrics:
        """Return the epoch whose weights are the model, given `train.keep`."""
        validated = [epoch for epoch in self.epochs if epoch.valid_loss is not None]
        if keep == "best" and validated:
            return min(validated, key=lambda epoch: epoch.valid_loss or 0.0)
        return self.epochs[-1]


class Trial(Record):
    """Settings and result of one trial of a sweep.

    Attributes:
        number: Position in the order in which trials are proposed.
        backbone: Backbone of the model.
        base_lr: Peak learning rate of the head in the frozen epochs.
        metric: Validation metric.
        values: Value of the metric for each seed.
        value: Mean of `values`; None: the trial failed.
        seconds: Duration of all trainings of the trial.
        model_urls: Model folder of each seed.
        error: Why the trial failed; empty: it did not.
    """

    number: int
    backbone: str
    base_lr: float
    metric: MetricInfo = MetricInfo(name="error rate", unit="%")
    values: tuple[float, ...] = ()
    value: float | None = None
    seconds: float = 0.0
    model_urls: tuple[str, ...] = ()
    error: str = ""

    @property
    def value_text(self) -> str:
        """Mean with its unit, or "failed"."""
        return "failed" if self.value is None else self.metric.format(self.value)


class SweepResult(Record):
    """All trials of a sweep.

    Attributes:
        url: URL of this record in the store.
        trials: Sorted by mean validation metric, best first and failed trials last.
    """

    url: str
    trials: tuple[Trial, ...]
