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
    "DatasetPlan",
    "EpochMetrics",
    "EvalReport",
    "LRSuggestion",
    "LeftOut",
    "ShardInfo",
    "ShardPlan",
    "ShardRecord",
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
    """One Parquet file, by its name among the data set's shards."""

    path: str
    num_rows: int
    num_bytes: int
    sha256: str


class SplitInfo(_Record):
    """The shards of one split and its photos of each class, in class order."""

    num_rows: int
    class_counts: tuple[int, ...]
    shards: tuple[ShardInfo, ...]


class ShardPlan(_Record):
    """A shard to be written: its photos are a row group of the plan's files, by its `index`."""

    index: int
    split: Split
    prefix: str
    """Its photos' hashes begin with these bits."""
    key: str
    """Hash of all that shapes the shard; equal keys mean equal shards."""
    num_photos: int
    num_bytes: int
    done: bool
    """Whether a shard of this key is in the store already."""


class DatasetPlan(_Record):
    """All that is decided before the first shard is written."""

    name: str
    source_url: str
    root: str
    """Folder of the data set with all its versions."""
    plan_url: str
    """The names of the files with the photos begin with it."""
    left_out_url: str
    classes: tuple[ClassInfo, ...]
    contract_version: int
    parent: str | None
    """Fingerprint of the newest version so far."""
    shards: tuple[ShardPlan, ...]

    @property
    def pending(self) -> tuple[ShardPlan, ...]:
        """The shards that are still to be written."""
        return tuple(shard for shard in self.shards if not shard.done)


class LeftOut(_Record):
    """A row of quarantine.parquet: a file, or a listed photo, that is not in the data set."""

    id: str
    path: str
    reason: str
    detail: str


class ShardRecord(_Record):
    """A shard that was written; `shard` is None when no photo of it could be used."""

    key: str
    shard: ShardInfo | None
    class_counts: dict[int, int]
    left_out: tuple[LeftOut, ...]
    num_read: int
    """Photos taken from the source; the others came from an earlier version's shards."""


class DatasetManifest(_Record):
    """A committed, immutable version of a data set. Its presence in the folder is the commit."""

    schema_version: int = 2
    name: str
    fingerprint: str
    url: str
    source_url: str
    classes: tuple[ClassInfo, ...]
    splits: dict[Split, SplitInfo]
    num_quarantined: int
    quarantine_reasons: dict[str, int]
    duplicates: dict[str, int] = {}
    """Photos with a (near-)duplicate: exact, near, leaking (the other is in a later split), and
    conflicting (the other has another label)."""
    contract_version: int = 1
    parent: str | None = None
    created_at: str = ""
    """UTC, ISO 8601."""

    def shard_url(self, shard: ShardInfo) -> str:
        """Where a shard lies; versions share their shards."""
        return f"{self.url.rstrip('/').rsplit('/', 1)[0]}/shards/{shard.path}"

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
        f"evaluate.split = {wanted}: the photos are split into {', '.join(present)} only. Set or "
        "raise source.valid_fraction or source.test_fraction, or set evaluate.split = auto"
    )


class Run(_Record):
    """The folder of a run, and the data set that it began with."""

    url: str
    manifest: DatasetManifest


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
