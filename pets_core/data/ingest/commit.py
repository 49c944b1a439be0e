"""Ingest a source into an immutable Parquet data set: plan, write shards, commit."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pets_core import storage
from pets_core.config.pipeline import PipelineConfig
from pets_core.config.source import IngestConfig
from pets_core.data.dataset import (
    DUPLICATES_SCHEMA,
    QUARANTINE_SCHEMA,
    commit_manifest,
    load_manifest,
    photos_schema,
    read_photo_table,
    write_table,
)
from pets_core.data.ingest.duplicates import drop_leaking, find_duplicates, leaking
from pets_core.data.ingest.journal import load_records
from pets_core.data.ingest.label_schema import Contract, save_contract
from pets_core.data.ingest.plan import load_planned_quarantine, load_version_tags, plan_dataset
from pets_core.data.ingest.quarantine import check_quarantine, find_class_losses, summarize
from pets_core.data.ingest.shards import rewrite_without, write_shard
from pets_core.data.ingest.stored import fingerprint, row_order
from pets_core.errors import PetsError, format_list
from pets_core.progress import OnProgress, Progress, ignore_progress, speed_text
from pets_core.records.base import Split
from pets_core.records.dataset import (
    DatasetManifest,
    DatasetPlan,
    NumberInfo,
    QuarantinedFile,
    ShardInfo,
    SplitInfo,
)
from pets_core.records.target_spec import target_spec
from pets_core.storage.layout import DUPLICATES, MANIFEST, PHOTOS, QUARANTINE, SHARDS

__all__ = ["commit", "ingest", "ingest_progress"]


def ingest(config: PipelineConfig, on_progress: OnProgress = ignore_progress) -> DatasetManifest:
    """Ingest the source into the store; return the existing version if nothing changed.

    Raises:
        PetsError: The source or the store is not usable, a class cannot be split, or more than
            `ingest.max_quarantined_fraction` of the photos cannot be used. No version is committed,
            and existing versions are unchanged.
    """
    plan = plan_dataset(config)
    done, total, started = 0, sum(s.num_photos for s in plan.pending), time.monotonic()
    with ThreadPoolExecutor(config.ingest.num_workers or os.cpu_count()) as pool:
        writes = pool.map(lambda shard: write_shard(config, plan, shard), plan.pending)
        for shard, _ in zip(plan.pending, writes, strict=True):
            done += shard.num_photos
            on_progress(ingest_progress(done, total, time.monotonic() - started))
    return commit(config, plan)


def ingest_progress(done: int, total: int, seconds: float) -> Progress:
    """Return the progress of writing shards, in photos."""
    detail = speed_text(done / seconds, "photos/s")
    return Progress(stage="ingest", done=done, total=total, unit="photos", detail=detail)


@dataclass(frozen=True)
class _Stored:
    """Shard in the store, with its number of photos by class."""

    split: Split
    info: ShardInfo
    class_counts: Mapping[int, int]


def commit(config: PipelineConfig, plan: DatasetPlan) -> DatasetManifest:
    """Validate the written shards and commit them as a version of the data set.

    The manifest is the last file written; until then readers see only earlier versions.

    Raises:
        PetsError: Too many photos are quarantined, or a class or split has no readable photo.
    """
    stored, quarantined, narrow = _load_stored(plan)
    photos = _load_photos(plan, stored)
    duplicates = find_duplicates(photos, config.ingest.near_duplicate_bits)
    if config.ingest.duplicates == "drop":
        stored, photos, dropped = _drop_leaking(plan, stored, duplicates, photos, config.ingest)
        quarantined += dropped
        duplicates = drop_leaking(duplicates, photos, config.ingest.near_duplicate_bits)
    reasons = dict(sorted(Counter(row.reason for row in quarantined).items()))
    splits = _splits(plan, stored)
    lost = find_class_losses(quarantined, _class_totals(plan, splits))
    check_quarantine(quarantined, photos.num_rows, config.ingest, lambda: _describe_losses(lost))
    _check_readable(splits, plan, quarantined)
    contract = _contract(plan)
    hashes = {split: [shard.sha256 for shard in info.shards] for split, info in splits.items()}
    version = fingerprint(plan.name, contract, hashes, quarantined)
    url = storage.join(plan.root, version)
    if storage.exists(storage.join(url, MANIFEST)):
        return _recommit(load_manifest(url), plan)
    write_table(storage.join(url, PHOTOS), photos)
    write_table(storage.join(url, DUPLICATES), duplicates)
    rows = [row.model_dump() for row in sorted(quarantined, key=row_order)]
    quarantine = pa.Table.from_pylist(rows, QUARANTINE_SCHEMA)
    write_table(storage.join(url, QUARANTINE), quarantine)
    save_contract(plan.root, contract)
    manifest = DatasetManifest(
        schema_version=plan.schema_version,
        name=plan.name,
        fingerprint=version,
        url=url,
        source_url=plan.source_url,
        vocabulary=plan.vocabulary,
        targets=plan.targets,
        numbers=_number_statistics(plan, photos),
        splits=splits,
        num_quarantined=len(quarantined),
        quarantine_reasons=reasons,
        quarantined_by_class=lost,
        low_contrast_fraction=narrow,
        warnings=plan.warnings,
        duplicates=_count_duplicates(duplicates),
        contract_version=plan.contract_version,
        parent=plan.parent,
        created_at=_now(),
    )
    commit_manifest(manifest)
    return manifest


def _contract(plan: DatasetPlan) -> Contract:
    contract = Contract.of(plan.contract_version, plan.vocabulary, plan.targets, plan.numbers)
    return contract.model_copy(update={"schema_version": plan.schema_version})


def _number_statistics(plan: DatasetPlan, photos: pa.Table) -> tuple[NumberInfo, ...]:
    """Return the target numbers with their statistics over the training photos."""
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


def _recommit(manifest: DatasetManifest, plan: DatasetPlan) -> DatasetManifest:
    """Return an existing version, made the newest again if another was committed after it."""
    if plan.parent in (None, manifest.fingerprint):
        return manifest
    renewed = manifest.model_copy(update={"parent": plan.parent, "created_at": _now()})
    commit_manifest(renewed)
    return renewed


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _load_stored(plan: DatasetPlan) -> tuple[list[_Stored], list[QuarantinedFile], float]:
    """Return the plan's shards in order, all quarantined files, and the low-contrast fraction.

    That is the fraction of photos read whose grey levels span less than a quarter of the range.
    """
    stored, quarantined = [], load_planned_quarantine(plan)
    records = load_records(plan.root, [shard.key for shard in plan.shards])
    for shard, record in zip(plan.shards, records, strict=True):
        if record is None:
            raise PetsError(f"shard {shard.split}-{shard.prefix} was not written: ingest again")
        quarantined += record.quarantined
        if record.shard is not None:
            stored.append(_Stored(shard.split, record.shard, record.class_counts))
    num_read = sum(record.num_read for record in records if record)
    num_low_contrast = sum(record.num_low_contrast for record in records if record)
    return stored, quarantined, num_low_contrast / num_read if num_read else 0.0


def _load_photos(plan: DatasetPlan, stored: Sequence[_Stored]) -> pa.Table:
    """Return the rows of photos.parquet, read from the shards without the image bytes."""
    version_tags = load_version_tags(plan)
    schema = photos_schema(plan.targets)
    columns = [name for name in schema.names if name not in ("shard", "version_tag")]

    def read(shard: _Stored) -> pa.Table:
        table = read_photo_table(storage.join(plan.root, SHARDS, shard.info.path), columns)
        table = table.replace_schema_metadata(None)
        names = pa.array([shard.info.path] * table.num_rows, pa.string())
        tags = pa.array([version_tags[i] for i in table["id"].to_pylist()], pa.string())
        return table.append_column("shard", names).append_column("version_tag", tags).cast(schema)

    with ThreadPoolExecutor(4) as pool:
        return pa.concat_tables([schema.empty_table(), *pool.map(read, stored)])


def _drop_leaking(
    plan: DatasetPlan,
    stored: Sequence[_Stored],
    duplicates: pa.Table,
    photos: pa.Table,
    config: IngestConfig,
) -> tuple[list[_Stored], pa.Table, list[QuarantinedFile]]:
    """Rewrite shards without leaking photos.

    Returns:
        The shards, the rows of photos.parquet, and the dropped photos.
    """
    leaks = {row["id"]: row for row in leaking(duplicates).to_pylist()}
    rows = photos.select(["id", "source_path", "shard"]).to_pylist()
    rows = [row for row in rows if row["id"] in leaks]
    dropped = [
        QuarantinedFile(
            id=row["id"],
            path=row["source_path"],
            reason="duplicate",
            detail=f"like {leaks[row['id']]['match_id']} in {leaks[row['id']]['match_split']}",
            label=leaks[row["id"]]["target_text"] if target_spec(plan.targets).is_label else "",
        )
        for row in rows
    ]
    renamed = {row["shard"]: "" for row in rows}
    kept = []
    for shard in stored:
        if shard.info.path not in renamed:
            kept.append(shard)
            continue
        info, counts = rewrite_without(plan, shard.info, set(leaks), config.row_group_rows)
        if info is not None:
            renamed[shard.info.path] = info.path
            kept.append(replace(shard, info=info, class_counts=counts))
    rest = photos.filter(pc.invert(pc.is_in(photos["id"], pa.array(leaks, pa.string()))))
    shards = pa.array([renamed.get(name, name) for name in rest["shard"].to_pylist()], pa.string())
    return kept, rest.set_column(rest.schema.get_field_index("shard"), "shard", shards), dropped


def _splits(plan: DatasetPlan, stored: Sequence[_Stored]) -> dict[Split, SplitInfo]:
    splits: dict[Split, SplitInfo] = {}
    for split in dict.fromkeys(shard.split for shard in plan.shards):
        own = [shard for shard in stored if shard.split == split]
        counts = sum((Counter(shard.class_counts) for shard in own), Counter[int]())
        splits[split] = SplitInfo(
            num_rows=sum(shard.info.num_rows for shard in own),
            class_counts=tuple(counts[label] for label in range(len(plan.vocabulary))),
            shards=tuple(shard.info for shard in own),
        )
    return splits


def _class_totals(plan: DatasetPlan, splits: Mapping[Split, SplitInfo]) -> dict[str, int]:
    """Return the number of photos of each class over all splits."""
    columns = zip(*(info.class_counts for info in splits.values()), strict=True)
    totals = (sum(counts) for counts in columns)
    return {info.name: total for info, total in zip(plan.vocabulary, totals, strict=True)}


def _describe_losses(lost: Mapping[str, tuple[int, int]]) -> str:
    """Return a hint that names the classes that lost most photos; empty if there is none."""
    named = [f"{label} ({num} of {total})" for label, (num, total) in lost.items()]
    return (
        f"Classes that lose at least half of their photos: {format_list(named, 5)}" if named else ""
    )


def _check_readable(
    splits: Mapping[Split, SplitInfo], plan: DatasetPlan, quarantined: Sequence[QuarantinedFile]
) -> None:
    train = splits["train"].class_counts
    if empty := [c.name for c, count in zip(plan.vocabulary, train, strict=True) if not count]:
        rows = [row for row in quarantined if row.label in empty]
        lines = [f"no readable training photos of {', '.join(empty)}: add photos"]
        raise PetsError("\n".join([*lines, *summarize(rows, len(rows))]))
    if lost := [split for split, info in splits.items() if not info.num_rows]:
        raise PetsError(f"no readable {' or '.join(lost)} photos: correct the source")


def _count_duplicates(duplicates: pa.Table) -> dict[str, int]:
    assert duplicates.schema.equals(DUPLICATES_SCHEMA)
    exact = sum(duplicates["exact"].to_pylist())
    classes = zip(
        *(duplicates[n].to_pylist() for n in ("target_text", "match_target_text")), strict=True
    )
    return {
        "exact": exact,
        "near": duplicates.num_rows - exact,
        "leaking": leaking(duplicates).num_rows,
        "conflicting": sum(own != other for own, other in classes),
    }
