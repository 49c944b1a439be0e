"""Photos of a source to an immutable Parquet data set: plan, write shards, commit."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pets_core import storage
from pets_core.config import IngestConfig, PipelineConfig, SourceConfig
from pets_core.data.dataset import (
    COMPRESSION,
    QUARANTINE_SCHEMA,
    SCHEMA,
    commit_manifest,
    dataset_url,
    load_manifest,
)
from pets_core.data.images import ImageInfo, UnreadablePhotoError, inspect, is_photo_name
from pets_core.data.sources import Catalogue, LabelledPhoto, Source, open_source
from pets_core.data.splits import hold_out
from pets_core.errors import PetsError
from pets_core.progress import OnProgress, Progress, ignore_progress
from pets_core.records import (
    ClassInfo,
    DatasetManifest,
    ShardInfo,
    Split,
    SplitInfo,
    choose_evaluation_split,
)

__all__ = ["IngestPlan", "ingest", "plan_ingest"]

_SPLITS: tuple[Split, ...] = ("train", "valid", "test")
_MAX_OPEN_SHARDS = 300
_BY_RULE = frozenset({"not_a_photo", "unlisted", "in_no_list", "same_id"})
"""Reasons to leave a file out that say nothing bad of the photos."""


class LeftOut(NamedTuple):
    """A row of quarantine.parquet."""

    id: str
    path: str
    reason: str
    detail: str


class PlannedPhoto(NamedTuple):
    """A photo that is to be written: where from, what it is, and into which shard."""

    id: str
    path: str
    sha256: str
    label: int
    split: Split
    shard: int


@dataclass(frozen=True)
class IngestPlan:
    """All that is decided before the first byte is written."""

    name: str
    source_url: str
    fingerprint: str
    classes: tuple[ClassInfo, ...]
    photos: dict[str, PlannedPhoto]
    """By path in the source."""
    num_shards: dict[Split, int]
    left_out: tuple[LeftOut, ...]


def ingest(config: PipelineConfig, on_progress: OnProgress = ignore_progress) -> DatasetManifest:
    """Bring the source into the store, or find that this very data set is there already.

    Raises:
        PetsError: The source or the store is not usable, a class cannot be split, or more than
            `ingest.max_quarantined_fraction` of the photos cannot be read. Nothing is then left
            in the store.
    """
    storage.check_writable(storage.absolute(config.store))
    source = open_source(config)
    plan = plan_ingest(source, config, on_progress)
    url = dataset_url(config.store, plan.name, plan.fingerprint)
    committed = storage.join(url, "manifest.json")
    if storage.exists(committed):
        manifest = load_manifest(url)
        _check_quarantine(manifest.quarantine_reasons, manifest.num_rows, config.ingest)
        return manifest
    try:
        manifest = _write(source, plan, url, config.ingest, on_progress)
    except BaseException:
        # Another ingest of the same source may have committed in the meantime.
        if not storage.exists(committed):
            storage.remove(url)
        raise
    commit_manifest(manifest)
    return manifest


def plan_ingest(
    source: Source, config: PipelineConfig, on_progress: OnProgress = ignore_progress
) -> IngestPlan:
    """Read the whole source once, decide every photo's split and shard, and fingerprint it all.

    Raises:
        PetsError: The source is damaged or empty, or a class is too small to be split.
    """
    catalogue = source.catalogue()
    files: dict[str, tuple[str, str, int]] = {}
    left_out: list[LeftOut] = []
    for count, (photo_id, path, data) in enumerate(source.read(), 1):
        if refusal := _refuse(photo_id, path, catalogue, files):
            left_out.append(refusal)
        else:
            files[photo_id] = (path, sha256(data).hexdigest(), len(data))
        if count % 200 == 0:
            total = max(len(catalogue.photos), count)
            on_progress(Progress(stage="plan", done=count, total=total, unit="files"))
    left_out += [
        LeftOut(photo_id, "", "missing", "listed, but the source holds no such photo")
        for photo_id in catalogue.photos
        if photo_id not in files
    ]
    splits, unlisted = _split(
        {i: catalogue.photos[i] for i in files}, config.source, official=_official(source, config)
    )
    left_out += [LeftOut(i, files[i][0], "in_no_list", "in no official list") for i in unlisted]
    _check_classes(catalogue, splits)
    choose_evaluation_split(config.evaluate.split, sorted(set(splits.values())))
    return _lay_out(source, config.ingest, catalogue, files, splits, left_out)


def _refuse(
    photo_id: str, path: str, catalogue: Catalogue, seen: dict[str, tuple[str, str, int]]
) -> LeftOut | None:
    pure = PurePosixPath(path)
    if not is_photo_name(pure.name):
        return LeftOut(photo_id, path, "not_a_photo", f"a {pure.suffix or 'nameless'} file")
    if photo_id not in catalogue.photos:
        return LeftOut(photo_id, path, "unlisted", "the annotations do not name this photo")
    if photo_id in seen:
        return LeftOut(photo_id, path, "same_id", f"the id is taken by {seen[photo_id][0]}")
    return None


def _official(source: Source, config: PipelineConfig) -> bool:
    wanted = config.source.split
    if wanted == "official" and not source.has_official_split:
        raise PetsError(f"source.split = official: {source.url} has no lists; set split = random")
    return source.has_official_split if wanted == "auto" else wanted == "official"


def _split(
    photos: dict[str, LabelledPhoto], config: SourceConfig, *, official: bool
) -> tuple[dict[str, Split], list[str]]:
    """Return the split of each photo id, and the ids that no official list names."""
    if official:
        if config.test_fraction:
            raise PetsError(
                f"source.test_fraction = {config.test_fraction:g} has no meaning where official "
                "lists are used: leave it out, or set source.split = random"
            )
        test = {i for i, photo in photos.items() if photo.official == "test"}
        rest = {i: p.label for i, p in photos.items() if p.official == "trainval"}
        fraction = config.valid_fraction
    else:
        if not config.valid_fraction and not config.test_fraction:
            raise PetsError(
                "source.valid_fraction and source.test_fraction are both 0: a random split would "
                "leave no photos to judge the model on. Set one of them above 0."
            )
        labels = {i: photo.label for i, photo in photos.items()}
        test = hold_out(labels, config.test_fraction, seed=config.seed)
        rest = {i: label for i, label in labels.items() if i not in test}
        fraction = config.valid_fraction / (1 - config.test_fraction)
    valid = hold_out(rest, fraction, seed=config.seed + 1)
    splits: dict[str, Split] = dict.fromkeys(rest, "train")
    splits.update(dict.fromkeys(valid, "valid"))
    splits.update(dict.fromkeys(test, "test"))
    return splits, [i for i in photos if i not in splits]


def _check_classes(catalogue: Catalogue, splits: dict[str, Split]) -> None:
    if not splits:
        raise PetsError("the source holds no photo with a label")
    total = Counter(catalogue.photos[i].label for i in splits)
    train = Counter(catalogue.photos[i].label for i, split in splits.items() if split == "train")
    faults = [
        f"class {label!r} has {total[label]} photo{'s' * (total[label] != 1)}, at least 2 are "
        "needed: add photos or remove the class"
        for label in catalogue.classes
        if total[label] < 2
    ] or [
        f"class {label!r} has no training photos in this split: change source.split, "
        "valid_fraction or test_fraction, or add photos"
        for label in catalogue.classes
        if not train[label]
    ]
    if len(catalogue.classes) < 2:
        faults.append("the source has a single class; a classifier needs at least 2")
    if faults:
        raise PetsError("\n".join(faults))


def _lay_out(
    source: Source,
    config: IngestConfig,
    catalogue: Catalogue,
    files: dict[str, tuple[str, str, int]],
    splits: dict[str, Split],
    left_out: list[LeftOut],
) -> IngestPlan:
    """Deal photos onto shards in an order drawn by hash, so that any shard is a fair sample."""
    index = {label: i for i, label in enumerate(catalogue.classes)}
    photos: dict[str, PlannedPhoto] = {}
    num_shards: dict[Split, int] = {}
    for split in _SPLITS:
        ids = sorted(i for i, s in splits.items() if s == split)
        if not ids:
            continue
        num_bytes = sum(files[i][2] for i in ids)
        num_shards[split] = min(len(ids), max(1, -(-num_bytes // (config.shard_mib << 20))))
        if num_shards[split] > _MAX_OPEN_SHARDS:
            raise PetsError(
                f"ingest.shard_mib = {config.shard_mib}: {num_shards[split]} {split} shards would "
                f"be written at once, at most {_MAX_OPEN_SHARDS} can be; raise it"
            )
        dealt = sorted(ids, key=lambda i: sha256(f"shard:{i}".encode()).digest())
        for place, photo_id in enumerate(dealt):
            path, digest, _ = files[photo_id]
            photos[path] = PlannedPhoto(
                photo_id,
                path,
                digest,
                index[catalogue.photos[photo_id].label],
                split,
                place * num_shards[split] // len(ids),
            )
    classes = tuple(ClassInfo(name=n, species=s) for n, s in catalogue.classes.items())
    identity: list[Any] = [
        1,
        source.name,
        config.row_group_rows,
        num_shards,
        [tuple(c.model_dump().values()) for c in classes],
        sorted(photos.values()),
        sorted(left_out),
    ]
    fingerprint = sha256(json.dumps(identity).encode()).hexdigest()[:20]
    return IngestPlan(
        source.name, source.url, fingerprint, classes, photos, num_shards, tuple(left_out)
    )


def _write(
    source: Source, plan: IngestPlan, url: str, config: IngestConfig, on_progress: OnProgress
) -> DatasetManifest:
    left_out = list(plan.left_out)
    with ExitStack() as stack:
        shards = {
            (split, number): stack.enter_context(
                _ShardWriter(url, f"{split}-{number:05d}-of-{count:05d}.parquet", config)
            )
            for split, count in plan.num_shards.items()
            for number in range(count)
        }
        for photo, data, checked in _checked(source, plan, config.num_workers, on_progress):
            if isinstance(checked, UnreadablePhotoError):
                left_out.append(LeftOut(photo.id, photo.path, checked.reason, checked.detail))
                continue
            shards[photo.split, photo.shard].add(_row(photo, data, checked, plan.classes))
        reasons = dict(sorted(Counter(row.reason for row in left_out).items()))
        written = sum(shard.labels.total() for shard in shards.values())
        _check_quarantine(reasons, written, config)
    _write_quarantine(left_out, url)
    splits = {split: _split_info(split, shards, len(plan.classes)) for split in plan.num_shards}
    _check_readable(splits, plan.classes)
    return DatasetManifest(
        name=plan.name,
        fingerprint=plan.fingerprint,
        url=url,
        source_url=plan.source_url,
        classes=plan.classes,
        splits=splits,
        num_quarantined=len(left_out),
        quarantine_reasons=reasons,
    )


def _checked(
    source: Source, plan: IngestPlan, num_workers: int, on_progress: OnProgress
) -> Iterator[tuple[PlannedPhoto, bytes, ImageInfo | UnreadablePhotoError]]:
    """Decode every planned photo in threads, a bounded number ahead, in the source's order."""

    def check(data: bytes) -> ImageInfo | UnreadablePhotoError:
        try:
            return inspect(data)
        except UnreadablePhotoError as error:
            return error

    # An archive may hold a path twice; the first one was planned.
    pending = dict(plan.photos)
    planned = (
        (photo, data)
        for _, path, data in source.read()
        if (photo := pending.pop(path, None)) is not None
    )
    done = 0
    with ThreadPoolExecutor(num_workers or os.cpu_count()) as pool:
        while chunk := list(islice(planned, 128)):
            for (photo, data), checked in zip(
                chunk, pool.map(check, [data for _, data in chunk]), strict=True
            ):
                if sha256(data).hexdigest() != photo.sha256:
                    raise PetsError(f"{source.url}: {photo.path} changed while it was read")
                yield photo, data, checked
            done += len(chunk)
            on_progress(Progress(stage="ingest", done=done, total=len(plan.photos), unit="photos"))
    if pending:
        raise PetsError(f"{source.url}: {next(iter(pending))} went away while it was read")


def _row(
    photo: PlannedPhoto, data: bytes, info: ImageInfo, classes: tuple[ClassInfo, ...]
) -> dict[str, Any]:
    return {
        "id": photo.id,
        "image": {"bytes": data, "path": PurePosixPath(photo.path).name},
        "label": photo.label,
        "class_name": classes[photo.label].name,
        "species": classes[photo.label].species,
        "width": info.width,
        "height": info.height,
        "sha256": photo.sha256,
        "source_path": photo.path,
        "split": photo.split,
    }


def _check_quarantine(reasons: Mapping[str, int], num_rows: int, config: IngestConfig) -> None:
    """Refuse a source too much of which is damaged; files left out by rule do not count."""
    bad = {reason: count for reason, count in reasons.items() if reason not in _BY_RULE}
    num_bad = sum(bad.values())
    fraction = num_bad / (num_rows + num_bad)
    if fraction > config.max_quarantined_fraction:
        listed = ", ".join(f"{count} {reason}" for reason, count in sorted(bad.items()))
        raise PetsError(
            f"{num_bad} of {num_rows + num_bad} photos ({fraction:.1%}) cannot be used ({listed}), "
            f"more than ingest.max_quarantined_fraction = {config.max_quarantined_fraction:g}: "
            "mend the source or raise the bound"
        )


def _check_readable(splits: dict[Split, SplitInfo], classes: tuple[ClassInfo, ...]) -> None:
    train = splits["train"].class_counts
    if empty := [c.name for c, count in zip(classes, train, strict=True) if not count]:
        raise PetsError(f"no readable training photo is left of {', '.join(empty)}: add photos")
    if lost := [split for split, info in splits.items() if not info.num_rows]:
        raise PetsError(f"no readable {' or '.join(lost)} photo is left: mend the source")


def _write_quarantine(left_out: list[LeftOut], url: str) -> None:
    rows = [row._asdict() for row in sorted(left_out)]
    with storage.writing(storage.join(url, "quarantine.parquet")) as file:
        pq.write_table(pa.Table.from_pylist(rows, QUARANTINE_SCHEMA), file)


class _ShardWriter:
    """One Parquet shard: rows in, a whole file (or none) out."""

    def __init__(self, url: str, path: str, config: IngestConfig) -> None:
        self.path = path
        self.labels: Counter[int] = Counter()
        self._url, self._row_group_rows = storage.join(url, path), config.row_group_rows
        self._rows: list[dict[str, Any]] = []
        self._stack = ExitStack()

    def __enter__(self) -> _ShardWriter:
        self._file = self._stack.enter_context(storage.writing(self._url))
        self._parquet = self._stack.enter_context(
            pq.ParquetWriter(self._file, SCHEMA, compression=COMPRESSION, write_page_checksum=True)
        )
        return self

    def __exit__(self, *exception: Any) -> None:
        if exception[0] is None:
            self._flush()
        self._stack.__exit__(*exception)

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        self.labels[row["label"]] += 1
        if len(self._rows) == self._row_group_rows:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._parquet.write_table(pa.Table.from_pylist(self._rows, SCHEMA))
            self._rows.clear()

    def info(self) -> ShardInfo:
        return ShardInfo(
            path=self.path,
            num_rows=self.labels.total(),
            num_bytes=self._file.num_bytes,
            sha256=self._file.hash.hexdigest(),
        )


def _split_info(
    split: Split, shards: dict[tuple[Split, int], _ShardWriter], num_classes: int
) -> SplitInfo:
    own = [writer for (of, _), writer in shards.items() if of == split]
    labels = sum((writer.labels for writer in own), Counter[int]())
    return SplitInfo(
        num_rows=labels.total(),
        class_counts=tuple(labels[i] for i in range(num_classes)),
        shards=tuple(writer.info() for writer in own),
    )
