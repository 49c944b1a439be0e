"""Records of a data set: its plan, its shards, its manifest, and the run it begins."""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar, Literal

from pets_core.errors import PetsError
from pets_core.records.base import Record, Split
from pets_core.records.target_spec import target_spec

__all__ = [
    "ClassInfo",
    "DatasetManifest",
    "DatasetPlan",
    "LeftOut",
    "NumberInfo",
    "Run",
    "ShardInfo",
    "ShardPlan",
    "ShardRecord",
    "SplitInfo",
    "choose_evaluation_split",
]


class ClassInfo(Record):
    """One label of the vocabulary; its place in `DatasetManifest.classes` is its index."""

    name: str
    species: str | None = None


class NumberInfo(Record):
    """One number that is learnt of each photo, and how it is spread over the training photos.

    Attributes:
        name: What it is.
        unit: What it is told in; empty: none.
        mean: Over the training photos.
        std: Standard deviation of the same.
        low: Least of the same.
        high: Greatest of the same.
    """

    name: str
    unit: str = ""
    mean: float = 0.0
    std: float = 1.0
    low: float = 0.0
    high: float = 0.0

    @property
    def text(self) -> str:
        """Its name, with its unit where it has one."""
        return f"{self.name} ({self.unit})" if self.unit else self.name


class ShardInfo(Record):
    """One Parquet file, by its name among the data set's shards."""

    path: str
    num_rows: int
    num_bytes: int
    sha256: str


class SplitInfo(Record):
    """The shards of one split and its photos of each class or tag, in their order."""

    num_rows: int
    class_counts: tuple[int, ...]
    shards: tuple[ShardInfo, ...]

    @property
    def class_range(self) -> list[int | str]:
        """The fewest and the most photos of a class or tag; nothing where there is none."""
        return [min(self.class_counts), max(self.class_counts)] if self.class_counts else ["", ""]


class ShardPlan(Record):
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


class DatasetPlan(Record):
    """All that is decided before the first shard is written."""

    name: str
    source_url: str
    root: str
    """Folder of the data set with all its versions."""
    plan_url: str
    """The names of the files with the photos begin with it."""
    left_out_url: str
    classes: tuple[ClassInfo, ...]
    targets: str = "class"
    numbers: tuple[NumberInfo, ...] = ()
    contract_version: int
    parent: str | None
    """Fingerprint of the newest version so far."""
    shards: tuple[ShardPlan, ...]
    warnings: tuple[str, ...] = ()
    """What is odd about the source, a sentence each."""

    @property
    def pending(self) -> tuple[ShardPlan, ...]:
        """The shards that are still to be written."""
        return tuple(shard for shard in self.shards if not shard.done)


class LeftOut(Record):
    """A row of quarantine.parquet: a file, or a listed photo, that is not in the data set.

    Attributes:
        id: Of the photo.
        path: Of the file; empty: there is none.
        reason: A short code.
        detail: What was found, or what to do.
        label: The class that the source gives the photo; empty: none.
    """

    id: str
    path: str
    reason: str
    detail: str
    label: str = ""


class ShardRecord(Record):
    """A shard that was written; `shard` is None when no photo of it could be used."""

    key: str
    shard: ShardInfo | None
    class_counts: dict[int, int]
    left_out: tuple[LeftOut, ...]
    num_read: int
    """Photos taken from the source; the others came from an earlier version's shards."""
    num_narrow: int = 0
    """Of these, photos whose grey levels span less than a quarter of the range."""


class DatasetManifest(Record):
    """A committed, immutable version of a data set. Its presence in the folder is the commit."""

    schema_version: int = 2
    name: str
    fingerprint: str
    url: str
    source_url: str
    classes: tuple[ClassInfo, ...]
    """What `source.targets` chooses from: classes or tags; none where numbers are learnt."""
    targets: str = "class"
    numbers: tuple[NumberInfo, ...] = ()
    splits: dict[Split, SplitInfo]
    num_quarantined: int
    quarantine_reasons: dict[str, int]
    lost_of_classes: dict[str, tuple[int, int]] = {}
    """Photos left out and photos in all, of each class that lost at least half of its photos."""
    warnings: tuple[str, ...] = ()
    """What is odd about the source, a sentence each."""
    narrow_fraction: float = 0.0
    """Share of the photos read whose grey levels span less than a quarter of the range."""
    duplicates: dict[str, int] = {}
    """Photos with a (near-)duplicate: exact, near, leaking (the other is in a later split), and
    conflicting (the other has another label)."""
    contract_version: int = 1
    parent: str | None = None
    created_at: str = ""
    """UTC, ISO 8601."""

    @property
    def contents(self) -> str:
        """What is learnt of the photos, in words."""
        if self.numbers:
            return ", ".join(info.name for info in self.numbers)
        return f"{len(self.classes)} {target_spec(self.targets).plural}"

    @property
    def shared_files(self) -> set[str]:
        """Names of its shards, which lie outside its folder."""
        return {shard.path for info in self.splits.values() for shard in info.shards}

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


class Run(Record):
    """The folder of a run, and the data set that it began with."""

    DATASET: ClassVar[str] = "dataset.json"

    url: str
    manifest: DatasetManifest
