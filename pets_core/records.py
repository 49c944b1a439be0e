"""What crosses the border between two stages: ids, counts, hashes and URLs, never tensors."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from pydantic import BaseModel, ConfigDict

from pets_core.errors import PetsError

__all__ = [
    "ClassInfo",
    "ConfusedPair",
    "DatasetManifest",
    "EpochMetrics",
    "EvalReport",
    "LRSuggestion",
    "ShardInfo",
    "Split",
    "SplitInfo",
    "TrainResult",
    "choose_evaluation_split",
]

Split = Literal["train", "valid", "test"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ClassInfo(_Record):
    """One label of the vocabulary; its place in `DatasetManifest.classes` is its index."""

    name: str
    species: str | None = None


class ShardInfo(_Record):
    """One Parquet file; `path` is relative to the data set's folder."""

    path: str
    num_rows: int
    num_bytes: int
    sha256: str


class SplitInfo(_Record):
    """The shards of one split and its photos of each class, in class order."""

    num_rows: int
    class_counts: tuple[int, ...]
    shards: tuple[ShardInfo, ...]


class DatasetManifest(_Record):
    """A committed, immutable data set. Its presence in the folder is the commit."""

    schema_version: int = 1
    name: str
    fingerprint: str
    url: str
    source_url: str
    classes: tuple[ClassInfo, ...]
    splits: dict[Split, SplitInfo]
    num_quarantined: int
    quarantine_reasons: dict[str, int]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in index order."""
        return tuple(c.name for c in self.classes)

    @property
    def num_rows(self) -> int:
        """Photos of all splits."""
        return sum(s.num_rows for s in self.splits.values())

    def evaluation_split(self, wanted: Literal["auto", "test", "valid"]) -> Split:
        """The split to judge on; errors as `choose_evaluation_split`."""
        return choose_evaluation_split(wanted, self.splits)


def choose_evaluation_split(
    wanted: Literal["auto", "test", "valid"], present: Collection[Split]
) -> Split:
    """The split to judge on; auto prefers test.

    Raises:
        PetsError: No such split is present.
    """
    candidates: tuple[Split, ...] = ("test", "valid") if wanted == "auto" else (wanted,)
    for split in candidates:
        if split in present:
            return split
    raise PetsError(
        f"evaluate.split = {wanted}: the photos are split into {', '.join(present)} only. Set "
        "source.valid_fraction or source.test_fraction above 0, or evaluate.split = auto"
    )


class LRSuggestion(_Record):
    """Learning rates read off the range test; `chosen` is the one the settings ask for."""

    minimum: float
    steepest: float
    valley: float
    slide: float
    chosen: float
    suggestion: str
    num_steps: int
    seconds: float
    curve_url: str
    plot_url: str


class EpochMetrics(_Record):
    """What one epoch came to; validation figures are None where no validation split exists."""

    phase: Literal["frozen", "unfrozen"]
    epoch: int
    train_loss: float
    valid_loss: float | None = None
    valid_error_rate: float | None = None
    seconds: float
    photos_per_second: float


class TrainResult(_Record):
    """A finished training."""

    model_url: str
    history_url: str
    plot_url: str
    base_lr: float
    mixed_precision: str
    device: str
    num_processes: int
    num_steps: int
    epochs: tuple[EpochMetrics, ...]
    seconds: float


class ConfusedPair(_Record):
    """`count` photos of `actual` were taken for `predicted`."""

    actual: str
    predicted: str
    count: int


class EvalReport(_Record):
    """How a model did on one split."""

    model_url: str
    split: Split
    num_rows: int
    error_rate: float
    loss: float
    most_confused: tuple[ConfusedPair, ...]
    predictions_url: str
    confusion_url: str
    confusion_plot_url: str
    report_url: str
    photos_per_second: float
    seconds: float
