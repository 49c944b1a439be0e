"""Records of a comparison of runs."""

from __future__ import annotations

from typing import Any

from pets_core.records.base import Record
from pets_core.records.evaluation import Comparison, Metric
from pets_core.records.training import EpochMetrics

__all__ = ["ChangedSample", "ComparedRun", "RunComparison", "SettingDifference"]


class ComparedRun(Record):
    """A run in a comparison.

    Attributes:
        run_id: Id of the run.
        name: Name of the run.
        url: Folder of the run.
        dataset: Name of the data set.
        fingerprint: Version of the data set.
        split: Evaluated split.
        metric: Primary metric with its interval.
        baseline: Comparison with the first run on the same samples; None for the first run, or if
            they cannot be compared.
        not_compared: Why it is not compared; empty if it is.
        epochs: Losses and validation metric of each epoch.
        seconds: Duration of each stage, seconds.
    """

    run_id: str
    name: str
    url: str
    dataset: str
    fingerprint: str
    split: str
    metric: Metric
    baseline: Comparison | None = None
    not_compared: str = ""
    epochs: tuple[EpochMetrics, ...] = ()
    seconds: dict[str, float] = {}


class SettingDifference(Record):
    """A setting whose values differ between runs; `values` has one for each run."""

    name: str
    values: tuple[Any, ...]


class ChangedSample(Record):
    """A sample whose score differs between runs.

    Attributes:
        id: Id of the sample.
        actual: Target as text; empty if the kind has no text.
        predictions: Prediction of each run as text, or its score.
        scores: Score of each run in the primary metric.
    """

    id: str
    actual: str
    predictions: tuple[str, ...]
    scores: tuple[float, ...]


class RunComparison(Record):
    """Comparison of evaluated runs; the first run is the reference.

    Attributes:
        runs: The runs.
        settings: Settings whose values differ.
        changed: Samples on which the runs differ most.
        num_changed: Number of samples on which the runs differ.
        num_common: Number of samples that all comparable runs have.
    """

    runs: tuple[ComparedRun, ...]
    settings: tuple[SettingDifference, ...]
    changed: tuple[ChangedSample, ...] = ()
    num_changed: int = 0
    num_common: int = 0
