"""Shards, photos and versions that the store has already."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from hashlib import sha256

from pets_core import storage
from pets_core.data.dataset import read_photo_table
from pets_core.data.ingest.journal import journal_keys, load_records
from pets_core.data.ingest.label_schema import Contract
from pets_core.records.base import Split
from pets_core.records.dataset import (
    EARLIER_REASONS,
    DatasetManifest,
    QuarantinedFile,
    ShardRecord,
)
from pets_core.records.target_spec import target_spec
from pets_core.storage.layout import PHOTOS, SHARDS

__all__ = [
    "find_existing_shards",
    "fingerprint",
    "is_unchanged",
    "load_stored_records",
    "missing_photos_warnings",
    "row_order",
]


def load_stored_records(root: str, keys: Collection[str]) -> dict[str, ShardRecord]:
    """Return the journal's records, by key, of the shards that are in the store."""
    shards = storage.list_folder(storage.join(root, SHARDS))
    records = load_records(root, sorted(journal_keys(root).intersection(keys)))
    return {
        record.key: record
        for record in records
        if record and (record.shard is None or record.shard.path in shards)
    }


def find_existing_shards(parent: DatasetManifest | None) -> dict[tuple[str, str], str]:
    """Return the existing shard of each photo of `parent`, by path and version tag."""
    if parent is None:
        return {}
    columns = ["source_path", "version_tag", "shard"]
    table = read_photo_table(storage.join(parent.url, PHOTOS), columns)
    paths, tags, shards = (column.to_pylist() for column in table.columns)
    return dict(zip(zip(paths, tags, strict=True), shards, strict=True))


def missing_photos_warnings(
    parent: DatasetManifest | None,
    existing: Iterable[tuple[str, str]],
    paths: Iterable[str],
    source_url: str,
) -> tuple[str, ...]:
    """Return a warning if a new version lacks most photos of its parent: is it another data set?

    Args:
        parent: The newest version, if any.
        existing: Paths and version tags of the parent's photos.
        paths: Paths of the planned photos.
        source_url: URL of the new version's source.
    """
    earlier = {path for path, _ in existing}
    num_missing = len(earlier.difference(paths))
    if parent is None or 2 * num_missing <= len(earlier):
        return ()
    return (
        f"{num_missing} of the {len(earlier)} photos of the previous version of {parent.name!r} "
        f"(from {parent.source_url}) are not in {source_url}. Set source.name to store them as "
        "separate data sets.",
    )


def is_unchanged(
    parent: DatasetManifest,
    contract: Contract,
    planned: Sequence[tuple[Split, str]],
    quarantined: Sequence[QuarantinedFile],
) -> bool:
    """Return whether a plan equals its parent version; the plan drops no duplicates.

    Args:
        parent: The newest version.
        contract: Contract of the plan, with the parent's schema version.
        planned: Split and key of each planned shard.
        quarantined: Files that the plan quarantines.
    """
    records = load_stored_records(parent.url.rsplit("/", 1)[0], [key for _, key in planned])
    if any(key not in records for _, key in planned):
        return False
    hashes: dict[Split, list[str]] = {}
    all_quarantined = list(quarantined)
    for split, key in planned:
        own, record = hashes.setdefault(split, []), records[key]
        own += [record.shard.sha256] if record.shard else []
        all_quarantined += record.quarantined
    return fingerprint(parent.name, contract, hashes, all_quarantined) == parent.fingerprint


def fingerprint(
    name: str,
    contract: Contract,
    hashes: Mapping[Split, Sequence[str]],
    quarantined: Iterable[QuarantinedFile],
) -> str:
    """Return a hash of the shards' contents and the quarantine; deterministic for equal input.

    Args:
        name: Name of the data set.
        contract: Contract of the version.
        hashes: SHA-256 of each shard, by split.
        quarantined: All quarantined files.
    """
    identity = [
        contract.schema_version,
        name,
        [[info.name, info.species] for info in contract.vocabulary],
        hashes,
        [
            # The earlier codes: a new name of a reason is not a new version of a data set.
            [row.id, row.path, EARLIER_REASONS.get(row.reason, row.reason), row.detail]
            for row in sorted(quarantined, key=row_order)
        ],
    ]
    if not target_spec(contract.targets).is_label:
        identity += [contract.targets, [[info.name, info.unit] for info in contract.numbers]]
    return sha256(json.dumps(identity).encode()).hexdigest()[:20]


def row_order(row: QuarantinedFile) -> tuple[str, ...]:
    """Return the key by which the rows of quarantine.parquet are sorted."""
    return row.id, row.path, row.reason, row.detail
