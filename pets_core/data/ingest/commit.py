"""Photos of a source to an immutable Parquet data set: plan, write shards, commit."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pets_core import storage
from pets_core.config.pipeline import PipelineConfig
from pets_core.config.source import IngestConfig
from pets_core.data.dataset import (
    DUPLICATES_SCHEMA,
    QUARANTINE_SCHEMA,
    SCHEMA_VERSION,
    commit_manifest,
    load_manifest,
    photos_schema,
    read_table,
    write_table,
)
from pets_core.data.ingest.duplicates import find_duplicates, leaking, without_leaking
from pets_core.data.ingest.journal import load_records
from pets_core.data.ingest.label_schema import Contract, save_contract
from pets_core.data.ingest.plan import plan_dataset, planned_left_out, planned_marks
from pets_core.data.ingest.quarantine import check_quarantine, lost_of_classes, summarize
from pets_core.data.ingest.shards import without, write_shard
from pets_core.errors import PetsError, listed
from pets_core.progress import OnProgress, Progress, ignore_progress
from pets_core.records.base import Split
from pets_core.records.dataset import (
    ClassInfo,
    DatasetManifest,
    DatasetPlan,
    LeftOut,
    NumberInfo,
    ShardInfo,
    SplitInfo,
)
from pets_core.records.target_spec import target_spec

__all__ = ["commit", "ingest", "written"]


def ingest(config: PipelineConfig, on_progress: OnProgress = ignore_progress) -> DatasetManifest:
    """Bring the source into the store, or find that this very version is there already.

    Raises:
        PetsError: The source or the store is not usable, a class cannot be split, or more than
            `ingest.max_quarantined_fraction` of the photos cannot be used. No version is then
            committed, and those which are there stay as they are.
    """
    plan = plan_dataset(config)
    done, total, started = 0, sum(s.num_photos for s in plan.pending), time.monotonic()
    with ThreadPoolExecutor(config.ingest.num_workers or os.cpu_count()) as pool:
        writes = pool.map(lambda shard: write_shard(config, plan, shard), plan.pending)
        for shard, _ in zip(plan.pending, writes, strict=True):
            done += shard.num_photos
            on_progress(written(done, total, time.monotonic() - started))
    return commit(config, plan)


def written(done: int, total: int, seconds: float) -> Progress:
    """How far the writing of shards has come."""
    detail = f"{done / seconds:.0f} photos/s"
    return Progress(stage="ingest", done=done, total=total, unit="photos", detail=detail)


@dataclass(frozen=True)
class _Stored:
    """A shard in the store, and its photos of each class."""

    split: Split
    info: ShardInfo
    class_counts: Mapping[int, int]


def commit(config: PipelineConfig, plan: DatasetPlan) -> DatasetManifest:
    """Check the written shards as a whole, and make them a version of the data set.

    The manifest is the last file written; until it is there, readers see the versions before.

    Raises:
        PetsError: Too much was left out, or a class or split has no readable photo.
    """
    stored, left_out, narrow = _written(plan)
    photos = _photos(plan, stored)
    duplicates = find_duplicates(photos, config.ingest.near_duplicate_bits)
    if config.ingest.duplicates == "drop":
        stored, photos, dropped = _drop_leaking(plan, stored, duplicates, photos, config.ingest)
        left_out += dropped
        duplicates = without_leaking(duplicates, photos, config.ingest.near_duplicate_bits)
    reasons = dict(sorted(Counter(row.reason for row in left_out).items()))
    splits = _splits(plan, stored)
    lost = lost_of_classes(left_out, _class_totals(plan, splits))
    check_quarantine(left_out, photos.num_rows, config.ingest, lambda: _losses(lost))
    _check_readable(splits, plan, left_out)
    fingerprint = _fingerprint(plan, splits, left_out)
    url = storage.join(plan.root, fingerprint)
    if storage.exists(storage.join(url, "manifest.json")):
        return _again(load_manifest(url), plan)
    write_table(storage.join(url, "photos.parquet"), photos)
    write_table(storage.join(url, "duplicates.parquet"), duplicates)
    rows = [row.model_dump() for row in sorted(left_out, key=_row_order)]
    quarantine = pa.Table.from_pylist(rows, QUARANTINE_SCHEMA)
    write_table(storage.join(url, "quarantine.parquet"), quarantine)
    save_contract(plan.root, _contract(plan))
    manifest = DatasetManifest(
        schema_version=SCHEMA_VERSION,
        name=plan.name,
        fingerprint=fingerprint,
        url=url,
        source_url=plan.source_url,
        classes=plan.classes,
        targets=plan.targets,
        numbers=_spread(plan, photos),
        splits=splits,
        num_quarantined=len(left_out),
        quarantine_reasons=reasons,
        lost_of_classes=lost,
        narrow_fraction=narrow,
        warnings=plan.warnings,
        duplicates=_count(duplicates),
        contract_version=plan.contract_version,
        parent=plan.parent,
        created_at=_now(),
    )
    commit_manifest(manifest)
    return manifest


def _contract(plan: DatasetPlan) -> Contract:
    return Contract.of(plan.contract_version, plan.classes, plan.targets, plan.numbers)


def _spread(plan: DatasetPlan, photos: pa.Table) -> tuple[NumberInfo, ...]:
    """The numbers that are learnt, with how they are spread over the training photos."""
    if not plan.numbers:
        return ()
    training = photos.filter(pc.equal(photos["split"], "train"))["numbers"].to_pylist()
    values = np.array(training, np.float64)
    return tuple(
        info.model_copy(
            update={
                "mean": float(column.mean()), "std": float(column.std()) or 1.0,
                "low": float(column.min()), "high": float(column.max()),
            }
        )
        for info, column in zip(plan.numbers, values.T, strict=True)
    )  # fmt: skip


def _again(manifest: DatasetManifest, plan: DatasetPlan) -> DatasetManifest:
    """A version that is there: where another came after it, it becomes the newest again."""
    if plan.parent in (None, manifest.fingerprint):
        return manifest
    renewed = manifest.model_copy(update={"parent": plan.parent, "created_at": _now()})
    commit_manifest(renewed)
    return renewed


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _written(plan: DatasetPlan) -> tuple[list[_Stored], list[LeftOut], float]:
    """The plan's shards, in their order, all that was left out, and the share of narrow photos."""
    stored, left_out = [], planned_left_out(plan)
    records = load_records(plan.root, [shard.key for shard in plan.shards])
    for shard, record in zip(plan.shards, records, strict=True):
        if record is None:
            raise PetsError(f"shard {shard.split}-{shard.prefix} was not written: ingest again")
        left_out += record.left_out
        if record.shard is not None:
            stored.append(_Stored(shard.split, record.shard, record.class_counts))
    num_read = sum(record.num_read for record in records if record)
    num_narrow = sum(record.num_narrow for record in records if record)
    return stored, left_out, num_narrow / num_read if num_read else 0.0


def _photos(plan: DatasetPlan, stored: Sequence[_Stored]) -> pa.Table:
    """What the shards say of each photo, the photos' bytes left where they are."""
    marks = planned_marks(plan)
    schema = photos_schema(plan.targets)
    columns = [name for name in schema.names if name not in ("shard", "mark")]

    def read(shard: _Stored) -> pa.Table:
        table = read_table(storage.join(plan.root, "shards", shard.info.path), columns)
        table = table.replace_schema_metadata(None)
        names = pa.array([shard.info.path] * table.num_rows, pa.string())
        own = pa.array([marks[i] for i in table["id"].to_pylist()], pa.string())
        return table.append_column("shard", names).append_column("mark", own).cast(schema)

    with ThreadPoolExecutor(4) as pool:
        return pa.concat_tables([schema.empty_table(), *pool.map(read, stored)])


def _drop_leaking(
    plan: DatasetPlan,
    stored: Sequence[_Stored],
    duplicates: pa.Table,
    photos: pa.Table,
    config: IngestConfig,
) -> tuple[list[_Stored], pa.Table, list[LeftOut]]:
    """Write the shards that hold leaking photos again; return what is left, and what is not."""
    leaks = {row["id"]: row for row in leaking(duplicates).to_pylist()}
    rows = photos.select(["id", "source_path", "shard"]).to_pylist()
    rows = [row for row in rows if row["id"] in leaks]
    dropped = [
        LeftOut(
            id=row["id"],
            path=row["source_path"],
            reason="duplicate",
            detail=f"like {leaks[row['id']]['match_id']} in {leaks[row['id']]['match_split']}",
            label=leaks[row["id"]]["class_name"] if target_spec(plan.targets).is_label else "",
        )
        for row in rows
    ]
    renamed = {row["shard"]: "" for row in rows}
    kept = []
    for shard in stored:
        if shard.info.path not in renamed:
            kept.append(shard)
            continue
        info, counts = without(plan, shard.info, set(leaks), config.row_group_rows)
        if info is not None:
            renamed[shard.info.path] = info.path
            kept.append(replace(shard, info=info, class_counts=counts))
    left = photos.filter(pc.invert(pc.is_in(photos["id"], pa.array(leaks, pa.string()))))
    shards = pa.array([renamed.get(name, name) for name in left["shard"].to_pylist()], pa.string())
    return kept, left.set_column(left.schema.get_field_index("shard"), "shard", shards), dropped


def _splits(plan: DatasetPlan, stored: Sequence[_Stored]) -> dict[Split, SplitInfo]:
    splits: dict[Split, SplitInfo] = {}
    for split in dict.fromkeys(shard.split for shard in plan.shards):
        own = [shard for shard in stored if shard.split == split]
        counts = sum((Counter(shard.class_counts) for shard in own), Counter[int]())
        splits[split] = SplitInfo(
            num_rows=sum(shard.info.num_rows for shard in own),
            class_counts=tuple(counts[label] for label in range(len(plan.classes))),
            shards=tuple(shard.info for shard in own),
        )
    return splits


def _class_totals(plan: DatasetPlan, splits: Mapping[Split, SplitInfo]) -> dict[str, int]:
    """Photos of each class in all splits."""
    columns = zip(*(info.class_counts for info in splits.values()), strict=True)
    totals = (sum(counts) for counts in columns)
    return {info.name: total for info, total in zip(plan.classes, totals, strict=True)}


def _losses(lost: Mapping[str, tuple[int, int]]) -> str:
    """The classes that lost most photos, for a message; empty where there is none."""
    named = [f"{label} ({num} of {total})" for label, (num, total) in lost.items()]
    return f"Classes that lose most of their photos: {listed(named, 5)}" if named else ""


def _check_readable(
    splits: Mapping[Split, SplitInfo], plan: DatasetPlan, left_out: Sequence[LeftOut]
) -> None:
    train = splits["train"].class_counts
    if empty := [c.name for c, count in zip(plan.classes, train, strict=True) if not count]:
        rows = [row for row in left_out if row.label in empty]
        lines = [f"no readable training photo is left of {', '.join(empty)}: add photos"]
        raise PetsError("\n".join([*lines, *summarize(rows, len(rows))]))
    if lost := [split for split, info in splits.items() if not info.num_rows]:
        raise PetsError(f"no readable {' or '.join(lost)} photo is left: mend the source")


def _fingerprint(
    plan: DatasetPlan, splits: Mapping[Split, SplitInfo], left_out: Iterable[LeftOut]
) -> str:
    """Hash of the shards' content and of what was left out; equal input, equal fingerprint."""
    identity = [
        SCHEMA_VERSION,
        plan.name,
        [_class(info) for info in plan.classes],
        {split: [shard.sha256 for shard in info.shards] for split, info in splits.items()},
        [list(_row_order(row)) for row in sorted(left_out, key=_row_order)],
    ]
    if not target_spec(plan.targets).is_label:
        identity += [plan.targets, [[info.name, info.unit] for info in plan.numbers]]
    return sha256(json.dumps(identity).encode()).hexdigest()[:20]


def _class(info: ClassInfo) -> list[str | None]:
    return [info.name, info.species]


def _row_order(row: LeftOut) -> tuple[str, ...]:
    return row.id, row.path, row.reason, row.detail


def _count(duplicates: pa.Table) -> dict[str, int]:
    assert duplicates.schema.equals(DUPLICATES_SCHEMA)
    exact = sum(duplicates["exact"].to_pylist())
    classes = zip(
        *(duplicates[n].to_pylist() for n in ("class_name", "match_class_name")), strict=True
    )
    return {
        "exact": exact,
        "near": duplicates.num_rows - exact,
        "leaking": leaking(duplicates).num_rows,
        "conflicting": sum(own != other for own, other in classes),
    }
