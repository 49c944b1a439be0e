"""Records of a data set: plan, shards, manifest and run."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator

from pets_core.errors import PetsError
from pets_core.records.base import Record, Split, renamed
from pets_core.records.target_spec import target_spec
from pets_core.storage.layout import SHARDS

__all__ = [
    "EARLIER_REASONS",
    "ClassInfo",
    "DatasetManifest",
    "DatasetPlan",
    "NumberInfo",
    "QuarantinedFile",
    "Run",
    "ShardInfo",
    "ShardPlan",
    "ShardRecord",
    "SplitInfo",
    "choose_evaluation_split",
]


class ClassInfo(Record):
    """One class or tag; its position in `DatasetManifest.vocabulary` is its index."""

    name: str
    species: str | None = None


class NumberInfo(Record):
    """One target number, with its statistics over the training photos.

    Attributes:
        name: Name of the number.
        unit: Unit; empty: none.
        mean: Mean.
        std: Standard deviation.
        low: Minimum.
        high: Maximum.
    """

    name: str
    unit: str = ""
    mean: float = 0.0
    std: float = 1.0
    low: float = 0.0
    high: float = 0.0

    @property
    def text(self) -> str:
        """Name, followed by the unit in parentheses if there is one."""
        return f"{self.name} ({self.unit})" if self.unit else self.name


class ShardInfo(Record):
    """One Parquet file; `path` is its name in the data set's shards folder."""

    path: str
    num_rows: int
    num_bytes: int
    sha256: str


class SplitInfo(Record):
    """Shards of one split, and its number of photos of each class or tag by index."""

    num_rows: int
    class_counts: tuple[int, ...]
    shards: tuple[ShardInfo, ...]

    @property
    def class_range(self) -> list[int | str]:
        """Minimum and maximum of `class_counts`; empty strings without classes or tags."""
        return [min(self.class_counts), max(self.class_counts)] if self.class_counts else ["", ""]


class ShardPlan(Record):
    """A planned shard; its photos are row group `index` of the plan's files."""

    index: int
    split: Split
    prefix: str
    """Leading bits of the hashes of the shard's photos."""
    key: str
    """Hash of everything that determines the shard; equal keys mean equal shards."""
    num_photos: int
    done: bool
    """Whether the store already contains a shard with this key."""


class DatasetPlan(Record):
    """Plan of a data set version, made before the first shard is written."""

    name: str
    source_url: str
    root: str
    """Folder of all versions of the data set."""
    plan_url: str
    """Prefix of the URLs of the files that list the photos."""
    quarantine_url: str
    schema_version: int
    vocabulary: tuple[ClassInfo, ...]
    targets: str = "class"
    numbers: tuple[NumberInfo, ...] = ()
    contract_version: int
    parent: str | None
    """Fingerprint of the newest existing version."""
    shards: tuple[ShardPlan, ...]
    warnings: tuple[str, ...] = ()
    """Warnings about the source, one sentence each."""

    @property
    def pending(self) -> tuple[ShardPlan, ...]:
        """Shards that are not yet written."""
        return tuple(shard for shard in self.shards if not shard.done)


EARLIER_REASONS = {
    "excluded": "struck_out",  # codespell:ignore struck
    "not_in_split_lists": "in_no_list",
    "point_outside_photo": "place_outside_photo",
}
"""Reason codes whose names have changed, with their earlier names."""
_CURRENT_REASONS = {earlier: name for name, earlier in EARLIER_REASONS.items()}


def _current_reason(reason: str) -> str:
    """Return the current name of a reason code."""
    return _CURRENT_REASONS.get(reason, reason)


class QuarantinedFile(Record):
    """A row of quarantine.parquet: a file or listed photo that is not in the data set.

    Attributes:
        id: Id of the photo.
        path: Path of the file; empty: there is no file.
        reason: Short code of the reason.
        detail: Details of the problem, or how to fix it.
        label: Class of the photo in the source; empty: none.
    """

    id: str
    path: str
    reason: Annotated[str, AfterValidator(_current_reason)]
    detail: str
    label: str = ""


class ShardRecord(Record):
    """A written shard; `shard` is None if none of its photos can be used."""

    key: str
    shard: ShardInfo | None
    class_counts: dict[int, int]
    quarantined: tuple[QuarantinedFile, ...] = renamed("quarantined", "left_out")
    num_read: int
    """Photos read from the source; the others are copied from shards of an earlier version."""
    num_low_contrast: int = renamed("num_low_contrast", "num_narrow", 0)
    """Photos among `num_read` whose grey levels span less than a quarter of the range."""


class DatasetManifest(Record):
    """An immutable version of a data set, which is committed once its manifest file exists."""

    schema_version: int = 2
    """The default 2 keeps the hash of requests with a manifest of version 2."""
    name: str
    fingerprint: str
    url: str
    source_url: str
    vocabulary: tuple[ClassInfo, ...] = renamed("vocabulary", "classes")
    """Classes or tags; empty if the targets are numbers."""
    targets: str = "class"
    numbers: tuple[NumberInfo, ...] = ()
    splits: dict[Split, SplitInfo]
    num_quarantined: int
    quarantine_reasons: dict[str, int]
    quarantined_by_class: dict[str, tuple[int, int]] = renamed(
        "quarantined_by_class", "lost_of_classes", {}
    )
    """Quarantined and total photos of each class with at least half of its photos quarantined."""
    warnings: tuple[str, ...] = ()
    """Warnings about the source, one sentence each."""
    low_contrast_fraction: float = renamed("low_contrast_fraction", "narrow_fraction", 0.0)
    """Share of the photos read whose grey levels span less than a quarter of the range."""
    duplicates: dict[str, int] = {}
    """Number of photos with a duplicate, by type: exact, near, leaking (the duplicate is in a later
    split) and conflicting (the duplicate has another label)."""
    contract_version: int = 1
    parent: str | None = None
    created_at: str = ""
    """UTC, ISO 8601."""

    @property
    def contents(self) -> str:
        """Names of the numbers, or the number of classes or tags, as text."""
        if self.numbers:
            return ", ".join(info.name for info in self.numbers)
        return f"{len(self.vocabulary)} {target_spec(self.targets).plural}"

    @property
    def shared_files(self) -> set[str]:
        """Names of the shards, which are stored outside the version's folder."""
        return {shard.path for info in self.splits.values() for shard in info.shards}

    def shard_url(self, shard: ShardInfo) -> str:
        """Return the URL of a shard in the folder that all versions share."""
        return f"{self.url.rstrip('/').rsplit('/', 1)[0]}/{SHARDS}/{shard.path}"

    def files(self, split: Split) -> list[str]:
        """Return the URLs of the shards of a split."""
        return [self.shard_url(shard) for shard in self.splits[split].shards]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of classes or tags by index."""
        return tuple(c.name for c in self.vocabulary)

    @property
    def num_rows(self) -> int:
        """Number of photos in all splits."""
        return sum(s.num_rows for s in self.splits.values())

    def evaluation_split(self, wanted: Literal["auto", "test", "valid"]) -> Split:
        """Return the split to evaluate on; see `choose_evaluation_split`."""
        return choose_evaluation_split(wanted, self.splits)


def choose_evaluation_split(
    wanted: Literal["auto", "test", "valid"], present: Collection[Split]
) -> Split:
    """Return the split to evaluate on; auto prefers test.

    Raises:
        PetsError: The split is not present.
    """
    candidates: tuple[Split, ...] = ("test", "valid") if wanted == "auto" else (wanted,)
    for split in candidates:
        if split in present:
            return split
    raise PetsError(
        f"evaluate.split = {wanted}: the data set has only {', '.join(present)}. Set or increase "
        "source.valid_fraction or source.test_fraction, or set evaluate.split = auto"
    )


class Run(Record):
    """Folder of a run, and the data set of the run."""

    DATASET: ClassVar[str] = "dataset.json"

    url: str
    manifest: DatasetManifest
