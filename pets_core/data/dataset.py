"""The stored form of a data set: its folders, its Parquet schema, its manifest.

<store>/datasets/<name>/<fingerprint>/  manifest.json, photos.parquet, quarantine.parquet,
                                        duplicates.parquet: one version
<store>/datasets/<name>/shards/         Parquet shards, shared by the versions
<store>/datasets/<name>/journal/        what became of each planned shard, by its key
<store>/datasets/<name>/plans/          photos of each planned shard
<store>/datasets/<name>/contracts/      versions of the label contract
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pydantic

from pets_core import storage
from pets_core.errors import PetsError
from pets_core.records.dataset import ClassInfo, DatasetManifest, ShardInfo
from pets_core.records.target_spec import target_spec

__all__ = [
    "DUPLICATES_SCHEMA",
    "QUARANTINE_SCHEMA",
    "SCHEMA",
    "SCHEMA_VERSION",
    "commit_manifest",
    "compression_of",
    "dataset_root",
    "load_manifest",
    "open_parquet",
    "photos_schema",
    "read_shard",
    "read_table",
    "schema_of",
    "schema_with_classes",
    "write_table",
]

SCHEMA_VERSION = 2

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        # Hugging Face `datasets` takes a column for labels only where it may be null.
        pa.field("label", pa.int64()),
        pa.field("class_name", pa.string(), nullable=False),
        pa.field("species", pa.string()),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("phash", pa.uint64(), nullable=False),
        pa.field(
            "head_box",
            pa.struct([(side, pa.int32()) for side in ("xmin", "ymin", "xmax", "ymax")]),
        ),
        pa.field("source_path", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
    ]
)
"""One row a photo of one class. `width`, `height` and `head_box` are pixels of the upright
photo, from its upper left."""

_TAGS = [
    pa.field("tags", pa.list_(pa.string()), nullable=False),
    pa.field("one_hot", pa.list_(pa.int8()), nullable=False),
]
_NUMBERS = [pa.field("numbers", pa.list_(pa.float32()), nullable=False)]


def schema_of(targets: str) -> pa.Schema:
    """Columns of a data set.

    Where tags are learnt, `label` is null, `class_name` lists the tags, and two columns follow:
    `tags`, their names, and `one_hot`, a 1 for each tag of the vocabulary that the photo has and a
    0 for each other. Where numbers or places are learnt, `label` is null, `class_name` has them as
    the source tells them, and `numbers` holds them, places from -1 to 1.
    """
    more = {"label": [], "labels": _TAGS, "numbers": _NUMBERS}[target_spec(targets).storage]
    return pa.schema([*SCHEMA, *more])


def photos_schema(targets: str) -> pa.Schema:
    """Columns of photos.parquet, the index of a version.

    They are what is known of each photo, its shard, and the mark by which the next ingest tells
    whether its file has changed.
    """
    fields = [field for field in schema_of(targets) if field.name not in ("image", "head_box")]
    return pa.schema([*fields, pa.field("shard", pa.string()), pa.field("mark", pa.string())])


QUARANTINE_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("id", "path", "reason", "detail", "label")]
)
"""quarantine.parquet: a row for each file or listed photo that was left out, and why."""

DUPLICATES_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("id", "split", "class_name")),
        *((name, pa.string()) for name in ("match_id", "match_split", "match_class_name")),
        ("distance", pa.int32()),
        ("exact", pa.bool_()),
    ]
)
"""duplicates.parquet: a row for each photo that is (nearly) another one, with the other that weighs
most: one in a later split, else the nearest. `distance` counts differing bits of the hashes."""


def compression_of(schema: pa.Schema) -> dict[str, str]:
    """By column; photos are compressed already: to do it again costs time and saves nothing."""
    chosen: dict[str, str] = {}
    for field in schema:
        if pa.types.is_struct(field.type):
            chosen |= {f"{field.name}.{inner.name}": "ZSTD" for inner in field.type}
        else:
            chosen[f"{field.name}.list.element" if _is_list(field.type) else field.name] = "ZSTD"
    return chosen | {"image.bytes": "NONE"}


def schema_with_classes(classes: Sequence[ClassInfo], targets: str = "class") -> pa.Schema:
    """The schema with the metadata by which Hugging Face `datasets` decodes images and labels."""
    schema = schema_of(targets)
    features: dict[str, Any] = {field.name: _feature(field.type) for field in schema}
    features["image"] = {"_type": "Image"}
    if target_spec(targets).is_label:
        features["label"] = {"_type": "ClassLabel", "names": [c.name for c in classes]}
    metadata = json.dumps({"info": {"features": features}})
    return schema.with_metadata({"huggingface": metadata})


def dataset_root(store: str, name: str) -> str:
    """Folder of a data set with all its versions."""
    return storage.join(storage.absolute(store), "datasets", name)


def commit_manifest(manifest: DatasetManifest) -> None:
    """Write manifest.json, the last file of a version; from then on it exists."""
    storage.write_bytes(
        storage.join(manifest.url, "manifest.json"), manifest.model_dump_json(indent=2).encode()
    )


def load_manifest(url: str) -> DatasetManifest:
    """Read the manifest of the version in folder `url`, wherever that folder now lies.

    Raises:
        PetsError: There is no committed version, or its manifest is damaged.
    """
    data = storage.read_bytes(storage.join(url, "manifest.json"))
    try:
        manifest = DatasetManifest.model_validate_json(data)
    except pydantic.ValidationError as error:
        raise PetsError(f"{url}/manifest.json is damaged: {error}") from error
    return manifest.model_copy(update={"url": url})


def read_shard(manifest: DatasetManifest, shard: ShardInfo) -> bytes:
    """Read a shard whole, and compare it with the manifest's SHA-256.

    Raises:
        PetsError: It is not there, or another.
    """
    url = manifest.shard_url(shard)
    data = storage.read_bytes(url)
    if sha256(data).hexdigest() != shard.sha256:
        raise PetsError(
            f"{url} fails its checksum (its SHA-256 is not the manifest's): restore it, or remove "
            "it and ingest again"
        )
    return data


class _ParquetFile(pq.ParquetFile):  # type: ignore[misc]
    """A Parquet file that is read without Arrow's thread pool.

    A thread of the pool may free the Python object it read from when the interpreter has ended,
    which aborts the process (docs/architecture.md, Processes).
    """

    def read(self, columns: list[str] | None = None) -> pa.Table:
        return super().read(columns, use_threads=False)

    def read_row_group(self, i: int, columns: list[str] | None = None) -> pa.Table:
        return super().read_row_group(i, columns, use_threads=False)

    def iter_batches(
        self, batch_size: int = 65_536, columns: list[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        yield from super().iter_batches(batch_size, columns=columns, use_threads=False)


def open_parquet(file: Any) -> pq.ParquetFile:
    """Open a Parquet file whose page checksums are verified as its pages are read."""
    # Reading ahead has threads as well.
    return _ParquetFile(file, page_checksum_verification=True, pre_buffer=False)


def read_table(url: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet file, or some of its columns, verifying the checksums of its pages.

    Raises:
        PetsError: It is not there, or damaged.
    """
    with storage.open_read(url) as file:
        try:
            return open_parquet(file).read(columns=None if columns is None else list(columns))
        except (pa.ArrowInvalid, OSError) as error:
            raise PetsError(f"{url} is damaged: {error}") from error


def write_table(
    url: str, table: pa.Table, row_group_rows: int | None = None, setting: str = "store"
) -> None:
    """Write a Parquet file, whole or not at all; `setting` as of `storage.writing`."""
    with storage.writing(url, setting) as file:
        pq.write_table(table, file, row_group_rows, compression="zstd", write_page_checksum=True)


def _feature(kind: pa.DataType) -> Any:
    if pa.types.is_struct(kind):
        return {field.name: _feature(field.type) for field in kind}
    if _is_list(kind):
        return {"feature": _feature(kind.value_type), "_type": "Sequence"}
    return {"dtype": str(kind), "_type": "Value"}


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind))
