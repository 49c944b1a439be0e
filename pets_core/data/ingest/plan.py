"""What is decided before the first shard is written: labels, splits, and who lies where."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pets_core import storage
from pets_core.config.pipeline import PipelineConfig
from pets_core.config.source import IngestConfig, SourceConfig
from pets_core.data.dataset import (
    SCHEMA,
    SCHEMA_VERSION,
    dataset_root,
    open_parquet,
    read_table,
    write_table,
)
from pets_core.data.ingest.checks import check_photos, check_splits
from pets_core.data.ingest.journal import journal_keys, load_records
from pets_core.data.ingest.label_schema import Contract, agree, load_contract
from pets_core.data.ingest.quarantine import NO_NUMBERS, check_quarantine
from pets_core.data.ingest.selection import left_out_row, select_files
from pets_core.data.ingest.splits import assign_splits, split_rows, straddling_groups
from pets_core.data.sources.catalogue import Box, Catalogue, LabelledPhoto, Source
from pets_core.data.sources.files import FileEntry
from pets_core.data.sources.fixes import apply_fixes, read_fixes
from pets_core.data.sources.formats import decoders
from pets_core.data.sources.sources import open_source
from pets_core.data.versions import newest_version
from pets_core.errors import PetsError
from pets_core.records.base import Split
from pets_core.records.dataset import DatasetManifest, DatasetPlan, LeftOut, ShardPlan
from pets_core.records.target_spec import target_spec

__all__ = [
    "PlannedPhoto",
    "plan_dataset",
    "planned_left_out",
    "planned_marks",
    "planned_photos",
]

_SPLITS: tuple[Split, ...] = ("train", "valid", "test")
_HASH_BITS = 64
_SHARDS_A_FILE = 256
"""A task reads the footer of its plan file, about 1 kB a shard."""
_PLAN_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("path", pa.string()),
        ("mark", pa.string()),
        ("label", pa.int64()),
        ("head_box", SCHEMA.field("head_box").type),
        ("tags", pa.list_(pa.int64())),
        ("numbers", pa.list_(pa.float64())),
        ("annotation_size", pa.list_(pa.int64())),
        ("prior", pa.string()),
    ]
)
_LEFT_OUT_SCHEMA = pa.schema([(name, pa.string()) for name in LeftOut.model_fields])


class PlannedPhoto(NamedTuple):
    """A photo that is to be written.

    Attributes:
        id: Its id.
        path: Its file in the source.
        mark: The file's version.
        label: Class index; None where no class is learnt.
        head_box: Where its source tells.
        tags: Indices of its tags, where these are learnt.
        numbers: Where these or places are learnt; places in pixels.
        annotation_size: Width and height of the photo that places and box refer to; empty: of the
            upright one.
        prior: Shard of an earlier version that holds this very photo; empty: none.
    """

    id: str
    path: str
    mark: str
    label: int | None
    head_box: Box | None
    tags: tuple[int, ...] = ()
    numbers: tuple[float, ...] = ()
    annotation_size: tuple[int, ...] = ()
    prior: str = ""


@dataclass(frozen=True)
class _Leaf:
    """The photos of one shard, in their order, and the first bits of their hashes."""

    split: Split
    prefix: str
    photos: list[PlannedPhoto]
    num_bytes: int


def plan_dataset(config: PipelineConfig) -> DatasetPlan:
    """Look at source and store, and decide everything but what a look at the photos tells.

    A photo's split and its shard follow hashes of its id. So the same photos make the same shards
    whatever came before, and a few new photos touch few shards.

    Raises:
        PetsError: Source or store cannot be used, a class is too small, a label is outside the
            contract, or a split would be empty. Nothing is then written.
    """
    storage.check_writable(storage.absolute(config.store))
    source = open_source(config)
    official = _official(source, config.source)
    root = dataset_root(config.store, source.name)
    catalogue, struck_out = apply_fixes(source.catalogue(), read_fixes(config.source.label_fixes))
    files, left_out = select_files(source, catalogue, struck_out)
    contract = _contract(root, source.name, catalogue, config)
    photos = _usable(catalogue, files, contract, left_out)
    rows = split_rows(photos, contract.targets, config.source.group_pattern)
    splits = assign_splits(
        rows,
        official=official,
        valid_fraction=config.source.valid_fraction,
        test_fraction=config.source.test_fraction,
        seed=config.source.seed,
    )
    for photo_id in [i for i in photos if splits[i] is None]:
        photo = photos.pop(photo_id)
        left_out.append(left_out_row(files[photo_id], photo, "in_no_list", "in no official list"))
    check_quarantine(left_out, len(photos), config.ingest, partial(_hint, source, left_out))
    check_photos(contract, photos, files, left_out)
    check_splits(contract, photos, rows, splits, config)
    labels = {info.name: index for index, info in enumerate(contract.classes)}
    chosen = {
        photo_id: (_planned(photo, files[photo_id], contract.targets, labels), split)
        for photo_id, photo in photos.items()
        if (split := splits[photo_id])
    }
    sizes = {photo_id: files[photo_id].size for photo_id in chosen}
    leaves = list(_leaves(chosen, sizes, config.ingest.shard_mib << 20))
    plan = _write_plan(source, root, contract, config.ingest, leaves, left_out)
    warnings = (*catalogue.warnings, *straddling_groups(rows, splits))
    return plan.model_copy(update={"warnings": warnings})


def _hint(source: Source, left_out: Sequence[LeftOut]) -> str:
    """Where the first missing photo was looked for; empty where none is missing."""
    missing = next((row.id for row in left_out if row.reason == "missing"), None)
    return source.missing_hint(missing) if missing else ""


def _usable(
    catalogue: Catalogue,
    files: Mapping[str, FileEntry],
    contract: Contract,
    left_out: list[LeftOut],
) -> dict[str, LabelledPhoto]:
    """The photos that have a file and a target of the contract; the others go to `left_out`."""
    known = {info.name for info in contract.classes}
    photos = {}
    for photo_id, entry in files.items():
        photo = catalogue.photos[photo_id]
        outside = [name for name in photo.names(contract.targets) if name not in known]
        if outside:
            left_out.append(left_out_row(entry, photo, "label_outside_contract", outside[0]))
        elif contract.numbers and photo.numbers is None:
            detail = f"the source gives it no {contract.numbers[0].name}"
            left_out.append(left_out_row(entry, photo, NO_NUMBERS, detail))
        else:
            photos[photo_id] = photo
    return photos


def _planned(
    photo: LabelledPhoto, entry: FileEntry, targets: str, labels: Mapping[str, int]
) -> PlannedPhoto:
    indices = tuple(sorted(labels[name] for name in photo.names(targets)))
    is_class = target_spec(targets).is_label
    return PlannedPhoto(
        photo.id,
        entry.path,
        entry.mark,
        indices[0] if is_class else None,
        photo.head_box,
        () if is_class else indices,
        photo.numbers or (),
        photo.annotation_size or (),
    )


def planned_photos(plan: DatasetPlan, shard: ShardPlan) -> list[PlannedPhoto]:
    """The photos of a planned shard, in their order."""
    with storage.open_read(_plan_file(plan.plan_url, shard.index)) as file:
        table = open_parquet(file).read_row_group(shard.index % _SHARDS_A_FILE)
    return [
        PlannedPhoto(
            **row
            | {"head_box": Box(**row["head_box"]) if row["head_box"] else None}
            | {name: tuple(row[name]) for name in ("tags", "numbers", "annotation_size")}
        )
        for row in table.to_pylist()
    ]


def planned_marks(plan: DatasetPlan) -> dict[str, str]:
    """The mark of each planned photo, by id."""
    marks: dict[str, str] = {}
    for index in range(0, len(plan.shards), _SHARDS_A_FILE):
        table = read_table(_plan_file(plan.plan_url, index), ["id", "mark"])
        marks.update(zip(table["id"].to_pylist(), table["mark"].to_pylist(), strict=True))
    return marks


def planned_left_out(plan: DatasetPlan) -> list[LeftOut]:
    """What the plan leaves out."""
    return [LeftOut(**row) for row in read_table(plan.left_out_url).to_pylist()]


def _official(source: Source, config: SourceConfig) -> bool:
    if config.split == "official" and not source.has_official_split:
        raise PetsError(f"source.split = official: {source.url} has no lists; set split = random")
    official = source.has_official_split and config.split != "random"
    if official and config.test_fraction:
        raise PetsError(
            f"source.test_fraction = {config.test_fraction:g} has no meaning where official "
            "lists are used: leave it out, or set source.split = random"
        )
    if not official and not config.valid_fraction and not config.test_fraction:
        raise PetsError(
            "source.valid_fraction and source.test_fraction are both 0: a random split would "
            "leave no photos to judge the model on. Set one of them above 0."
        )
    return official


def _contract(root: str, name: str, catalogue: Catalogue, config: PipelineConfig) -> Contract:
    new_labels, targets = config.ingest.new_labels, config.source.targets
    contract, new = agree(
        load_contract(root),
        catalogue.classes,
        extend=new_labels == "extend",
        targets=targets,
        numbers=catalogue.numbers,
    )
    if new and new_labels == "refuse":
        what = "tag" if target_spec(targets).is_labels else "label"
        raise PetsError(
            f"{what} {', '.join(map(repr, new))}: outside the contract of data set {name!r} "
            f"(version {contract.version}, {len(contract.classes)} {what}s). Set "
            "ingest.new_labels = extend to add to it, or quarantine to leave these photos out, or "
            "source.name to start another data set"
        )
    return contract


def _leaves(
    photos: Mapping[str, tuple[PlannedPhoto, Split]], sizes: Mapping[str, int], bound: int
) -> Iterator[_Leaf]:
    """Cut each split, in the order of its ids' hashes, where the first bits of the hashes change.

    A leaf is halved as long as its photos take more than `bound` bytes (extendible hashing: Fagin
    et al. 1979). The order is random to the eye, so any shard is a fair sample.
    """

    def halve(split: Split, prefix: str, own: list[tuple[int, PlannedPhoto]]) -> Iterator[_Leaf]:
        num_bytes = sum(sizes[photo.id] for _, photo in own)
        if not own:
            return
        if num_bytes <= bound or len(own) == 1 or len(prefix) == _HASH_BITS:
            yield _Leaf(split, prefix, [photo for _, photo in own], num_bytes)
            return
        bit = 1 << (_HASH_BITS - 1 - len(prefix))
        middle = bisect_left(own, True, key=lambda item: bool(item[0] & bit))
        yield from halve(split, prefix + "0", own[:middle])
        yield from halve(split, prefix + "1", own[middle:])

    for split in _SPLITS:
        own = [(_order(photo.id), photo) for photo, of in photos.values() if of == split]
        yield from halve(split, "", sorted(own))


def _order(photo_id: str) -> int:
    return int.from_bytes(sha256(f"shard:{photo_id}".encode()).digest()[: _HASH_BITS // 8], "big")


def _write_plan(
    source: Source,
    root: str,
    contract: Contract,
    config: IngestConfig,
    leaves: Sequence[_Leaf],
    left_out: Sequence[LeftOut],
) -> DatasetPlan:
    """Store the photos of each shard, where the tasks that write the shards find them."""
    same = json.dumps([SCHEMA_VERSION, config.row_group_rows, contract.model_dump()["classes"]])
    # What was left out for want of a decoder is read once there is one.
    same += "".join(decoders())
    if not target_spec(contract.targets).is_label:
        same += json.dumps([contract.targets, [info.name for info in contract.numbers]])
    keys = [_key(leaf, same) for leaf in leaves]
    written = _written(root, set(keys))
    parent = newest_version(root)
    shards = tuple(
        ShardPlan(
            index=index, split=leaf.split, prefix=leaf.prefix, key=key, done=key in written,
            num_photos=len(leaf.photos), num_bytes=leaf.num_bytes,
        )
        for index, (leaf, key) in enumerate(zip(leaves, keys, strict=True))
    )  # fmt: skip
    prior = {} if all(shard.done for shard in shards) else _prior(parent)
    rows = sorted(row.model_dump_json() for row in left_out)
    key = sha256(json.dumps([keys, rows, parent and parent.fingerprint]).encode()).hexdigest()[:20]
    url = storage.join(root, "plans", key)
    for index in range(0, len(leaves), _SHARDS_A_FILE):
        with (
            storage.writing(_plan_file(url, index)) as file,
            pq.ParquetWriter(file, _PLAN_SCHEMA) as writer,
        ):
            for leaf in leaves[index : index + _SHARDS_A_FILE]:
                writer.write_table(_plan_table(leaf, prior), row_group_size=len(leaf.photos))
    rows_out = [row.model_dump() for row in left_out]
    write_table(f"{url}-left-out.parquet", pa.Table.from_pylist(rows_out, _LEFT_OUT_SCHEMA))
    return DatasetPlan(
        name=source.name,
        source_url=storage.without_query(source.url),
        root=root,
        plan_url=url,
        left_out_url=f"{url}-left-out.parquet",
        classes=contract.classes,
        targets=contract.targets,
        numbers=contract.numbers,
        contract_version=contract.version,
        parent=parent.fingerprint if parent else None,
        shards=shards,
    )


def _plan_file(plan_url: str, index: int) -> str:
    """The file with the photos of the shard of this index."""
    return f"{plan_url}-{index // _SHARDS_A_FILE:05}.parquet"


def _written(root: str, keys: set[str]) -> set[str]:
    """Those of the keys whose shards are in the store."""
    shards = storage.list_folder(storage.join(root, "shards"))
    records = load_records(root, sorted(keys & journal_keys(root)))
    return {
        record.key
        for record in records
        if record and (record.shard is None or record.shard.path in shards)
    }


def _key(leaf: _Leaf, same: str) -> str:
    """Hash of all that shapes a shard, but for the photos' bytes, which their marks stand for."""
    digest = sha256(f"{same}{leaf.split}".encode())
    for photo in leaf.photos:
        learnt = [values for values in (photo.tags, photo.numbers, photo.annotation_size) if values]
        digest.update(json.dumps([*photo[:5], *learnt]).encode())
    return digest.hexdigest()[:32]


def _prior(parent: DatasetManifest | None) -> dict[tuple[str, str], str]:
    """The shard that holds a photo already, by path and mark."""
    if parent is None:
        return {}
    table = read_table(storage.join(parent.url, "photos.parquet"), ["source_path", "mark", "shard"])
    columns = (table[name].to_pylist() for name in ("source_path", "mark", "shard"))
    return {(path, mark): shard for path, mark, shard in zip(*columns, strict=True)}


def _plan_table(leaf: _Leaf, prior: Mapping[tuple[str, str], str]) -> pa.Table:
    rows = [
        {
            **photo._asdict(),
            "head_box": photo.head_box._asdict() if photo.head_box else None,
            "prior": prior.get((photo.path, photo.mark), ""),
        }
        for photo in leaf.photos
    ]
    return pa.Table.from_pylist(rows, _PLAN_SCHEMA)
