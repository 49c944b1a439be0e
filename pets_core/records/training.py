"""Records of the learning-rate finder, of training and of a sweep."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AliasChoices, Field

from pets_core.records.base import Record

__all__ = [
    "EpochMetrics",
    "LRSuggestion",
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


class EpochMetrics(Record):
    """What one epoch came to; validation figures are None where no validation split exists."""

    phase: Literal["frozen", "unfrozen"]
    epoch: int
    train_loss: float
    valid_loss: float | None = None
    # Runs that began before objectives named their errors are gone on with.
    valid_error: Annotated[
        float | None, Field(validation_alias=AliasChoices("valid_error", "valid_error_rate"))
    ] = None
    metric: str = "error rate"
    """What `valid_error` is: a share of the samples, or an error in the targets' units."""
    seconds: float
    photos_per_second: float

    @property
    def error_text(self) -> str:
        """The validation error as people write it; empty where there is none."""
        if self.valid_error is None:
            return ""
        return f"{self.valid_error:.1%}" if self.is_share else f"{self.valid_error:.4g}"

    @property
    def is_share(self) -> bool:
        """Whether the error is a share."""
        return self.metric.endswith("error rate")


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
    """Settings that a sweep tried, and what came of them.

    Attributes:
        number: In the order in which trials were asked for.
        backbone: Of the model.
        base_lr: Peak rate of the head in the frozen epochs.
        error_rates: Share of the validation photos taken for another class, of each seed.
        error_rate: Their mean; None where the trial failed.
        seconds: All its trainings took.
        model_urls: The models, of each seed.
        fault: Why it failed.
    """

    number: int
    backbone: str
    base_lr: float
    error_rates: tuple[float, ...] = ()
    error_rate: float | None = None
    seconds: float = 0.0
    model_urls: tuple[str, ...] = ()
    fault: str = ""


class SweepResult(Record):
    """All trials of a sweep, the best first.

    Attributes:
        url: This record in the store.
        trials: Of least mean validation error first, those that failed last.
    """

    url: str
    trials: tuple[Trial, ...]
