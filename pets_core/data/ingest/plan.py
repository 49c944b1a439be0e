"""Plan an ingest before any shard is written: labels, splits, and the photos of each shard."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from hashlib import sha256

import pyarrow as pa
import pyarrow.parquet as pq

from pets_core import storage
from pets_core.config.pipeline import PipelineConfig
from pets_core.config.source import IngestConfig, SourceConfig
from pets_core.data.dataset import (
    QUARANTINE_SCHEMA,
    SCHEMA,
    SCHEMA_VERSION,
    dataset_root,
    open_parquet,
    read_table,
    write_table,
)
from pets_core.data.ingest.checks import check_photos, check_splits
from pets_core.data.ingest.label_schema import Contract, load_contract, reconcile
from pets_core.data.ingest.partition import Leaf, PlannedPhoto, partition
from pets_core.data.ingest.quarantine import NO_NUMBERS, check_quarantine
from pets_core.data.ingest.selection import quarantine_row, select_files
from pets_core.data.ingest.splits import assign_splits, split_rows, straddling_groups
from pets_core.data.ingest.stored import (
    find_existing_shards,
    is_unchanged,
    load_stored_records,
    missing_photos_warnings,
)
from pets_core.data.sources.catalogue import Box, Catalogue, LabelledPhoto, Source
from pets_core.data.sources.files import FileEntry
from pets_core.data.sources.fixes import apply_fixes, read_fixes
from pets_core.data.sources.formats import decoders
from pets_core.data.sources.sources import open_source
from pets_core.data.versions import newest_version
from pets_core.errors import PetsError
from pets_core.records.dataset import DatasetManifest, DatasetPlan, QuarantinedFile, ShardPlan
from pets_core.records.target_spec import target_spec
from pets_core.storage.layout import PLANS

__all__ = [
    "load_planned_photos",
    "load_planned_quarantine",
    "load_version_tags",
    "plan_dataset",
]

_SHARDS_PER_FILE = 256
"""Bounds the footer of a plan file, about 1 kB per shard, which each task reads."""
_PLAN_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("path", pa.string()),
        ("version_tag", pa.string()),
        ("label", pa.int64()),
        ("head_box", SCHEMA.field("head_box").type),
        ("tags", pa.list_(pa.int64())),
        ("numbers", pa.list_(pa.float64())),
        ("annotation_size", pa.list_(pa.int64())),
        ("existing_shard", pa.string()),
    ]
)


def plan_dataset(config: PipelineConfig) -> DatasetPlan:
    """Plan splits and shards without decoding photos.

    A photo's split and shard depend only on hashes of its id. The same photos therefore yield the
    same shards regardless of earlier versions, and a few new photos change few shards.

    Raises:
        PetsError: The source or the store is not usable, a class is too small, a label is outside
            the contract, or a split would be empty. Nothing is written.
    """
    storage.check_writable(storage.absolute(config.store))
    source = open_source(config)
    use_predefined_split = _uses_predefined_split(source, config.source)
    root = dataset_root(config.store, source.name)
    catalogue, excluded = apply_fixes(source.catalogue(), read_fixes(config.source.label_fixes))
    files, quarantined = select_files(source, catalogue, excluded)
    contract = _reconcile_contract(root, source.name, catalogue, config)
    photos = _select_usable(catalogue, files, contract, quarantined)
    rows = split_rows(photos, contract.targets, config.source.group_pattern)
    splits = assign_splits(
        rows,
        use_predefined_split=use_predefined_split,
        valid_fraction=config.source.valid_fraction,
        test_fraction=config.source.test_fraction,
        seed=config.source.seed,
    )
    for photo_id in [i for i in photos if splits[i] is None]:
        photo = photos.pop(photo_id)
        row = quarantine_row(files[photo_id], photo, "not_in_split_lists", "in no official list")
        quarantined.append(row)
    find_hint = partial(_missing_hint, source, quarantined)
    check_quarantine(quarantined, len(photos), config.ingest, find_hint)
    check_photos(contract, photos, files, quarantined)
    check_splits(contract, photos, rows, splits, config)
    labels = {info.name: index for index, info in enumerate(contract.vocabulary)}
    chosen = {
        photo_id: (_to_planned(photo, files[photo_id], contract.targets, labels), split)
        for photo_id, photo in photos.items()
        if (split := splits[photo_id])
    }
    sizes = {photo_id: files[photo_id].size for photo_id in chosen}
    leaves = list(partition(chosen, sizes, config.ingest.shard_mib << 20))
    plan = _write_plan(source, root, contract, config.ingest, leaves, quarantined)
    warnings = (*plan.warnings, *catalogue.warnings, *straddling_groups(rows, splits))
    return plan.model_copy(update={"warnings": warnings})


def _missing_hint(source: Source, quarantined: Sequence[QuarantinedFile]) -> str:
    """Return the source's hint for the first missing photo; empty if none is missing."""
    missing = next((row.id for row in quarantined if row.reason == "missing"), None)
    return source.missing_hint(missing) if missing else ""


def _select_usable(
    catalogue: Catalogue,
    files: Mapping[str, FileEntry],
    contract: Contract,
    quarantined: list[QuarantinedFile],
) -> dict[str, LabelledPhoto]:
    """Return the photos with a file and a valid target; append the others to `quarantined`."""
    known = {info.name for info in contract.vocabulary}
    photos = {}
    for photo_id, entry in files.items():
        photo = catalogue.photos[photo_id]
        outside = [name for name in photo.label_names(contract.targets) if name not in known]
        if outside:
            quarantined.append(quarantine_row(entry, photo, "label_outside_contract", outside[0]))
        elif contract.numbers and photo.numbers is None:
            detail = f"the source gives it no {contract.numbers[0].name}"
            quarantined.append(quarantine_row(entry, photo, NO_NUMBERS, detail))
        else:
            photos[photo_id] = photo
    return photos


def _to_planned(
    photo: LabelledPhoto, entry: FileEntry, targets: str, labels: Mapping[str, int]
) -> PlannedPhoto:
    indices = tuple(sorted(labels[name] for name in photo.label_names(targets)))
    is_class = target_spec(targets).is_label
    return PlannedPhoto(
        photo.id,
        entry.path,
        entry.version_tag,
        indices[0] if is_class else None,
        photo.head_box,
        () if is_class else indices,
        photo.numbers or (),
        photo.annotation_size or (),
    )


def load_planned_photos(plan: DatasetPlan, shard: ShardPlan) -> list[PlannedPhoto]:
    """Return the photos of a planned shard in order."""
    with storage.open_read(_plan_file(plan.plan_url, shard.index)) as file:
        table = open_parquet(file).read_row_group(shard.index % _SHARDS_PER_FILE)
    return [
        PlannedPhoto(
            **row
            | {"head_box": Box(**row["head_box"]) if row["head_box"] else None}
            | {name: tuple(row[name]) for name in ("tags", "numbers", "annotation_size")}
        )
        for row in table.to_pylist()
    ]


def load_version_tags(plan: DatasetPlan) -> dict[str, str]:
    """Return the version tag of each planned photo's file, by photo id."""
    tags: dict[str, str] = {}
    for index in range(0, len(plan.shards), _SHARDS_PER_FILE):
        table = read_table(_plan_file(plan.plan_url, index), ["id", "version_tag"])
        tags.update(zip(table["id"].to_pylist(), table["version_tag"].to_pylist(), strict=True))
    return tags


def load_planned_quarantine(plan: DatasetPlan) -> list[QuarantinedFile]:
    """Return the files and photos that the plan quarantines."""
    return [QuarantinedFile(**row) for row in read_table(plan.quarantine_url).to_pylist()]


def _uses_predefined_split(source: Source, config: SourceConfig) -> bool:
    if config.split == "official" and not source.has_predefined_split:
        raise PetsError(
            f"source.split = official: {source.url} has no predefined split; set split = random"
        )
    uses_predefined = source.has_predefined_split and config.split != "random"
    if uses_predefined and config.test_fraction:
        raise PetsError(
            f"source.test_fraction = {config.test_fraction:g} has no effect with the source's "
            "predefined split: remove it, or set source.split = random"
        )
    if not uses_predefined and not config.valid_fraction and not config.test_fraction:
        raise PetsError(
            "source.valid_fraction and source.test_fraction are both 0, so a random split has no "
            "photos to evaluate the model on: set one of them above 0"
        )
    return uses_predefined


def _reconcile_contract(
    root: str, name: str, catalogue: Catalogue, config: PipelineConfig
) -> Contract:
    new_labels, targets = config.ingest.new_labels, config.source.targets
    contract, new = reconcile(
        load_contract(root),
        catalogue.vocabulary,
        extend=new_labels == "extend",
        targets=targets,
        numbers=catalogue.numbers,
    )
    if new and new_labels == "refuse":
        noun = "tag" if target_spec(targets).is_labels else "label"
        raise PetsError(
            f"{noun} {', '.join(map(repr, new))}: outside the contract of data set {name!r} "
            f"(version {contract.version}, {len(contract.vocabulary)} {noun}s). Set "
            "ingest.new_labels = extend to add to it, ingest.new_labels = quarantine to quarantine "
            "these photos, or source.name to start a new data set"
        )
    return contract


def _write_plan(
    source: Source,
    root: str,
    contract: Contract,
    config: IngestConfig,
    leaves: Sequence[Leaf],
    quarantined: Sequence[QuarantinedFile],
) -> DatasetPlan:
    """Write the photos of each shard to plan files, which the shard tasks read."""
    parent = newest_version(root)
    contract = _schema_contract(contract, parent, config, leaves, quarantined)
    keys = _keys(leaves, contract, config)
    written = load_stored_records(root, keys)
    shards = tuple(
        ShardPlan(
            index=index, split=leaf.split, prefix=leaf.prefix, key=key, done=key in written,
            num_photos=len(leaf.photos),
        )
        for index, (leaf, key) in enumerate(zip(leaves, keys, strict=True))
    )  # fmt: skip
    existing = {} if all(shard.done for shard in shards) else find_existing_shards(parent)
    rows = sorted(row.model_dump_json() for row in quarantined)
    key = sha256(json.dumps([keys, rows, parent and parent.fingerprint]).encode()).hexdigest()[:20]
    url = storage.join(root, PLANS, key)
    for index in range(0, len(leaves), _SHARDS_PER_FILE):
        with (
            storage.writing(_plan_file(url, index)) as file,
            pq.ParquetWriter(file, _PLAN_SCHEMA) as writer,
        ):
            for leaf in leaves[index : index + _SHARDS_PER_FILE]:
                writer.write_table(_plan_table(leaf, existing), row_group_size=len(leaf.photos))
    rows_out = [row.model_dump() for row in quarantined]
    write_table(f"{url}-quarantine.parquet", pa.Table.from_pylist(rows_out, QUARANTINE_SCHEMA))
    source_url = storage.strip_query(source.url)
    paths = [photo.path for leaf in leaves for photo in leaf.photos]
    return DatasetPlan(
        name=source.name,
        source_url=source_url,
        root=root,
        plan_url=url,
        quarantine_url=f"{url}-quarantine.parquet",
        schema_version=contract.schema_version,
        vocabulary=contract.vocabulary,
        targets=contract.targets,
        numbers=contract.numbers,
        contract_version=contract.version,
        parent=parent.fingerprint if parent else None,
        shards=shards,
        warnings=missing_photos_warnings(parent, existing, paths, source_url),
    )


def _schema_contract(
    contract: Contract,
    parent: DatasetManifest | None,
    config: IngestConfig,
    leaves: Sequence[Leaf],
    quarantined: Sequence[QuarantinedFile],
) -> Contract:
    """Return the contract; with the parent's schema version if the plan equals the parent."""
    # To drop duplicates, a commit writes shards, which have the current schema.
    if parent is None or parent.schema_version == SCHEMA_VERSION or config.duplicates == "drop":
        return contract
    earlier = contract.model_copy(update={"schema_version": parent.schema_version})
    keys = _keys(leaves, earlier, config)
    planned = [(leaf.split, key) for leaf, key in zip(leaves, keys, strict=True)]
    return earlier if is_unchanged(parent, earlier, planned, quarantined) else contract


def _plan_file(plan_url: str, index: int) -> str:
    """Return the URL of the plan file with the photos of shard `index`."""
    return f"{plan_url}-{index // _SHARDS_PER_FILE:05}.parquet"


def _keys(leaves: Iterable[Leaf], contract: Contract, config: IngestConfig) -> list[str]:
    """Return the key of each leaf's shard, in the contract's schema version."""
    common = [contract.schema_version, config.row_group_rows, contract.model_dump()["vocabulary"]]
    # With a new decoder, shards with photos quarantined for lack of it are written again.
    inputs = json.dumps(common) + "".join(decoders())
    if not target_spec(contract.targets).is_label:
        inputs += json.dumps([contract.targets, [info.name for info in contract.numbers]])
    return [_shard_key(leaf, inputs) for leaf in leaves]


def _shard_key(leaf: Leaf, common: str) -> str:
    """Return a hash of all inputs of a shard.

    The version tag of a photo's file, such as an ETag, stands for its bytes.

    Args:
        leaf: Photos of the shard.
        common: Inputs that all shards of the plan have in common.
    """
    digest = sha256(f"{common}{leaf.split}".encode())
    for photo in leaf.photos:
        # Empty fields are omitted, so that a field added later does not change the keys.
        target = [values for values in (photo.tags, photo.numbers, photo.annotation_size) if values]
        digest.update(json.dumps([*photo[:5], *target]).encode())
    return digest.hexdigest()[:32]


def _plan_table(leaf: Leaf, existing: Mapping[tuple[str, str], str]) -> pa.Table:
    rows = [
        {
            **photo._asdict(),
            "head_box": photo.head_box._asdict() if photo.head_box else None,
            "existing_shard": existing.get((photo.path, photo.version_tag), ""),
        }
        for photo in leaf.photos
    ]
    return pa.Table.from_pylist(rows, _PLAN_SCHEMA)
