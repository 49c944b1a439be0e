"""Records of the learning-rate finder, of training and of a sweep."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AliasChoices, BeforeValidator, Field

from pets_core.records.base import Record

__all__ = [
    "EpochMetrics",
    "LRSuggestion",
    "MetricInfo",
    "SweepResult",
    "TrainResult",
    "Trial",
]


class LRSuggestion(Record):
    """Learning rates read off the range test.

    Attributes:
        minimum: By fastai's rule of that name, as the next three; None where the curve yields no
            suggestion.
        steepest: As above.
        valley: As above.
        slide: As above.
        chosen: The suggestion that the settings name; `train.base_lr` where there is none.
        suggestion: Name of the suggestion that the settings choose.
        num_steps: Optimizer steps before the loss diverged.
        seconds: Of the whole stage.
        curve_url: Rates and losses, Parquet.
        plot_url: Picture of the curve.
    """

    minimum: float | None = None
    steepest: float | None = None
    valley: float | None = None
    slide: float | None = None
    chosen: float
    suggestion: str
    num_steps: int
    seconds: float
    curve_url: str
    plot_url: str


class MetricInfo(Record):
    """The validation metric of an objective.

    Attributes:
        name: What the field calls it.
        higher_is_better: Direction.
        unit: "%" where it is a share, from 0 to 1; else its unit; empty: none.
    """

    name: str
    higher_is_better: bool = False
    unit: str = ""

    def format(self, value: float) -> str:
        """Return a value of this metric with its unit."""
        if self.unit.startswith("%"):
            return f"{100 * value:.1f}{self.unit}"
        return f"{value:.4g} {self.unit}".rstrip()

    def score(self, value: float) -> float:
        """Return a value such that lower is better."""
        return -value if self.higher_is_better else value


def _metric_of_old_runs(value: object) -> object:
    """Runs of earlier versions, which are resumed, have the name of the metric alone."""
    if isinstance(value, str):
        return {"name": value, "unit": "%" if value.endswith("error rate") else ""}
    return value


class EpochMetrics(Record):
    """Loss and metric of one epoch; those of validation are None without a validation split."""

    phase: Literal["frozen", "unfrozen"]
    epoch: int
    train_loss: float
    valid_loss: float | None = None
    valid_metric: Annotated[
        float | None,
        Field(validation_alias=AliasChoices("valid_metric", "valid_error", "valid_error_rate")),
    ] = None
    metric: Annotated[MetricInfo, BeforeValidator(_metric_of_old_runs)] = MetricInfo(
        name="error rate", unit="%"
    )
    """What `valid_metric` is."""
    seconds: float
    photos_per_second: float

    @property
    def metric_text(self) -> str:
        """The validation metric as people write it; empty where there is none."""
        return "" if self.valid_metric is None else self.metric.format(self.valid_metric)


class TrainResult(Record):
    """A finished training; `model_url` is that of the best or of the last weights."""

    model_url: str
    last_model_url: str
    best_model_url: str | None = None
    history_url: str
    plot_url: str
    base_lr: float
    mixed_precision: str
    device: str
    num_processes: int
    num_steps: int
    epochs: tuple[EpochMetrics, ...]
    seconds: float

    def kept(self, keep: Literal["last", "best"]) -> EpochMetrics:
        """What the epoch came to whose weights are the model, `train.keep` being as given."""
        judged = [epoch for epoch in self.epochs if epoch.valid_loss is not None]
        if keep == "best" and judged:
            return min(judged, key=lambda epoch: epoch.valid_loss or 0.0)
        return self.epochs[-1]


class Trial(Record):
    """Settings that a sweep tried, and the result.

    Attributes:
        number: In the order in which trials were proposed.
        backbone: Of the model.
        base_lr: Peak rate of the head in the frozen epochs.
        metric: The validation metric.
        values: Of the metric, for each seed.
        value: Their mean; None where the trial failed.
        seconds: All its trainings took.
        model_urls: The models, of each seed.
        error: Why it failed.
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
        """The mean as people write it; "failed" where there is none."""
        return "failed" if self.value is None else self.metric.format(self.value)


class SweepResult(Record):
    """All trials of a sweep, the best first.

    Attributes:
        url: This record in the store.
        trials: By their mean validation metric, those that failed last.
    """

    url: str
    trials: tuple[Trial, ...]
