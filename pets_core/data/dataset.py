"""Storage format of a data set: folders, Parquet schemas, manifest.

<store>/datasets/<name>/<fingerprint>/  one version: manifest.json, photos.parquet,
                                        quarantine.parquet, duplicates.parquet
<store>/datasets/<name>/shards/         Parquet shards, shared by the versions
<store>/datasets/<name>/journal/        result of each planned shard, one file per key
<store>/datasets/<name>/plans/          photos of each planned shard
<store>/datasets/<name>/contracts/      versions of the label contract
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pets_core import storage
from pets_core.errors import PetsError
from pets_core.records.base import RecordT, parse_record
from pets_core.records.dataset import ClassInfo, DatasetManifest, ShardInfo
from pets_core.records.target_spec import target_spec
from pets_core.storage.layout import DATASETS, MANIFEST

__all__ = [
    "DUPLICATES_SCHEMA",
    "QUARANTINE_SCHEMA",
    "REUSABLE_SCHEMA_VERSIONS",
    "SCHEMA",
    "SCHEMA_VERSION",
    "check_columns",
    "commit_manifest",
    "compression_of",
    "dataset_root",
    "list_column",
    "load_manifest",
    "open_described",
    "open_parquet",
    "photos_schema",
    "read_photo_table",
    "read_photo_tables",
    "read_shard",
    "read_table",
    "schema_of",
    "schema_with_vocabulary",
    "select_columns",
    "write_table",
]

SCHEMA_VERSION = 3
REUSABLE_SCHEMA_VERSIONS = (2, SCHEMA_VERSION)
"""Schema versions whose photos a new version of a data set copies from the store."""
_EARLIER_COLUMNS = {
    "target_text": "class_name",
    "match_target_text": "match_class_name",
    "version_tag": "mark",
}
"""Columns whose names have changed, with their names in files of earlier versions."""

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        # Hugging Face `datasets` accepts a label column only if it is nullable.
        pa.field("label", pa.int64()),
        pa.field("target_text", pa.string(), nullable=False),
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
"""Columns of a shard, one row per photo. `width`, `height` and `head_box` are in pixels of the
upright photo, origin at the upper left."""

_TAGS = [
    pa.field("tags", pa.list_(pa.string()), nullable=False),
    pa.field("one_hot", pa.list_(pa.int8()), nullable=False),
]
_NUMBERS = [pa.field("numbers", pa.list_(pa.float32()), nullable=False)]


def schema_of(targets: str) -> pa.Schema:
    """Return the shard schema for one kind of target.

    Tags: `label` is null, `target_text` lists the tags, `tags` holds their names and `one_hot` is
    multi-hot over the vocabulary. Numbers and coordinates: `label` is null, `target_text` holds the
    values as the source gives them, and `numbers` holds the targets; coordinates are scaled to
    [-1, 1].
    """
    extra = {"label": [], "labels": _TAGS, "numbers": _NUMBERS}[target_spec(targets).storage]
    return pa.schema([*SCHEMA, *extra])


def photos_schema(targets: str) -> pa.Schema:
    """Return the schema of photos.parquet, the index of a version.

    It has the columns of the shards except the image and its box, the shard's name, and the version
    tag of the source file, by which the next ingest detects changed files.
    """
    fields = [field for field in schema_of(targets) if field.name not in ("image", "head_box")]
    return pa.schema(
        [*fields, pa.field("shard", pa.string()), pa.field("version_tag", pa.string())]
    )


QUARANTINE_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("id", "path", "reason", "detail", "label")]
)
"""Schema of quarantine.parquet: one row per quarantined file or missing photo, with the reason."""

DUPLICATES_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("id", "split", "target_text")),
        *((name, pa.string()) for name in ("match_id", "match_split", "match_target_text")),
        ("distance", pa.int32()),
        ("exact", pa.bool_()),
    ]
)
"""Schema of duplicates.parquet: one row per photo that is a (near-)duplicate, with its best match:
one in a later split if there is one, else the nearest. `distance` is the Hamming distance of the
perceptual hashes."""


def compression_of(schema: pa.Schema) -> dict[str, str]:
    """Return the Parquet compression by column: ZSTD, except image bytes (already compressed)."""
    chosen: dict[str, str] = {}
    for field in schema:
        if pa.types.is_struct(field.type):
            chosen |= {f"{field.name}.{inner.name}": "ZSTD" for inner in field.type}
        else:
            chosen[f"{field.name}.list.element" if _is_list(field.type) else field.name] = "ZSTD"
    return chosen | {"image.bytes": "NONE"}


def schema_with_vocabulary(vocabulary: Sequence[ClassInfo], targets: str = "class") -> pa.Schema:
    """Return the shard schema with the metadata Hugging Face `datasets` needs for decoding."""
    schema = schema_of(targets)
    features: dict[str, Any] = {field.name: _feature(field.type) for field in schema}
    features["image"] = {"_type": "Image"}
    if target_spec(targets).is_label:
        features["label"] = {"_type": "ClassLabel", "names": [c.name for c in vocabulary]}
    metadata = json.dumps({"info": {"features": features}})
    return schema.with_metadata({"huggingface": metadata})


def dataset_root(store: str, name: str) -> str:
    """Return the folder of a data set, which holds all its versions."""
    return storage.join(storage.absolute(store), DATASETS, name)


def commit_manifest(manifest: DatasetManifest) -> None:
    """Write manifest.json, the last file of a version; its presence commits the version.

    The manifest of an earlier schema version keeps the field names of that version.
    """
    is_earlier = manifest.schema_version < SCHEMA_VERSION
    text = manifest.model_dump_json(indent=2, by_alias=is_earlier)
    storage.write_bytes(storage.join(manifest.url, MANIFEST), text.encode())


def load_manifest(url: str) -> DatasetManifest:
    """Read the manifest of the version in folder `url`.

    The returned manifest has this `url`, so that a folder may be moved or copied.

    Raises:
        PetsError: The folder holds no committed version, or the manifest is damaged.
    """
    data = storage.read_bytes(storage.join(url, MANIFEST))
    manifest = parse_record(DatasetManifest, data, f"{url}/{MANIFEST} is damaged")
    return manifest.model_copy(update={"url": url})


def read_shard(manifest: DatasetManifest, shard: ShardInfo) -> bytes:
    """Read a whole shard and verify its SHA-256 against the manifest.

    Raises:
        PetsError: The shard is missing, or its checksum differs.
    """
    url = manifest.shard_url(shard)
    data = storage.read_bytes(url)
    if sha256(data).hexdigest() != shard.sha256:
        raise PetsError(
            f"{url} fails its checksum (its SHA-256 differs from the manifest's): restore it, or "
            "remove it and ingest again"
        )
    return data


class _ParquetFile(pq.ParquetFile):  # type: ignore[misc]
    """Parquet file that is read without Arrow's thread pool.

    A thread of that pool may free the Python object behind the file during interpreter shutdown,
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
    """Open a Parquet file; page checksums are verified as pages are read."""
    # pre_buffer would start threads too.
    return _ParquetFile(file, page_checksum_verification=True, pre_buffer=False)


@contextmanager
def open_described(
    url: str, key: bytes, kind: type[RecordT], noun: str, remedy: str
) -> Iterator[tuple[pq.ParquetFile, RecordT]]:
    """Open a Parquet file, and read the record that describes it from its schema.

    Args:
        url: The file.
        key: Key of the record in the metadata of the schema.
        kind: Class of the record.
        noun: Noun for such a file, after "not", for error messages.
        remedy: What to do with another file, for error messages.

    Raises:
        PetsError: The file is missing, of another kind or damaged; also raised for reads in the
            block.
    """
    with storage.open_read(storage.absolute(url)) as file:
        try:
            parquet = open_parquet(file)
            metadata = parquet.schema_arrow.metadata or {}
            if key not in metadata:
                raise PetsError(
                    f"{url}: not {noun}: its schema has no metadata {key.decode()!r}; {remedy}"
                )
            problem = f"{url}: the metadata is damaged or of another version"
            yield parquet, parse_record(kind, metadata[key], problem)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise PetsError(f"{url}: not {noun}, or damaged: {error}") from error


def check_columns(url: str, parquet: pq.ParquetFile, expected: pa.Schema, noun: str) -> None:
    """Raise a PetsError if a column is missing or has another type.

    Args:
        url: The file.
        parquet: The open file.
        expected: Columns and their types.
        noun: Noun for such a file, after "not", for the error message.
    """
    schema = parquet.schema_arrow
    for field in expected:
        index = schema.get_field_index(field.name)
        if index < 0 or schema.field(index).type != field.type:
            found = "no such column" if index < 0 else f"not {schema.field(index).type}"
            raise PetsError(f"{url}: not {noun}: {field.name} must be {field.type}, {found}")


def read_table(url: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet file, or some of its columns, verifying page checksums.

    Raises:
        PetsError: The file is missing or damaged.
    """
    with storage.open_read(url) as file:
        try:
            return open_parquet(file).read(columns=None if columns is None else list(columns))
        except (pa.ArrowInvalid, OSError) as error:
            raise PetsError(f"{url} is damaged: {error}") from error


def read_photo_table(url: str, columns: Sequence[str]) -> pa.Table:
    """Read columns of a shard or of photos.parquet by their current names."""
    earlier = [_EARLIER_COLUMNS[name] for name in columns if name in _EARLIER_COLUMNS]
    # Parquet files are read without the columns that they lack.
    return select_columns(read_table(url, [*columns, *earlier]), columns)


def read_photo_tables(urls: Sequence[str], columns: Sequence[str]) -> pa.Table:
    """Read columns of shards as one table, as `read_photo_table` does.

    Raises:
        PetsError: A shard is missing or damaged.
    """
    return pa.concat_tables([read_photo_table(url, columns) for url in urls])


def select_columns(table: pa.Table, columns: Sequence[str]) -> pa.Table:
    """Select columns by their current names; earlier names are accepted, too.

    Raises:
        KeyError: The table lacks a column under both names.
    """
    current = {earlier: name for name, earlier in _EARLIER_COLUMNS.items()}
    return table.rename_columns([current.get(n, n) for n in table.column_names]).select(columns)


def list_column(values: npt.NDArray[np.float32]) -> pa.Array:
    """Return a fixed-size list column from an array (N, D)."""
    flat = pa.array(np.ascontiguousarray(values, np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def write_table(
    url: str, table: pa.Table, row_group_rows: int | None = None, setting: str = "store"
) -> None:
    """Write a Parquet file atomically; `setting` as in `storage.writing`."""
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
