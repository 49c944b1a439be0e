"""The Parquet form of a data set: its schema, its place in the store, its manifest."""

from __future__ import annotations

import pyarrow as pa
import pydantic

from pets_core import storage
from pets_core.errors import PetsError
from pets_core.records import DatasetManifest

__all__ = [
    "COMPRESSION",
    "QUARANTINE_SCHEMA",
    "SCHEMA",
    "commit_manifest",
    "dataset_url",
    "load_manifest",
]

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        pa.field("label", pa.int64(), nullable=False),
        pa.field("class_name", pa.string(), nullable=False),
        pa.field("species", pa.string()),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("source_path", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
    ]
)
"""One row a photo; `width` and `height` are pixels of the upright photo."""

COMPRESSION = {
    name: "NONE" if name == "image.bytes" else "ZSTD"
    for name in ["image.bytes", "image.path", *(n for n in SCHEMA.names if n != "image")]
}
"""Photos are compressed already; compressing them again costs time and saves nothing."""

QUARANTINE_SCHEMA = pa.schema(
    [("id", pa.string()), ("path", pa.string()), ("reason", pa.string()), ("detail", pa.string())]
)
"""One row for each file or listed photo that was left out, and why."""


def dataset_url(store: str, name: str, fingerprint: str) -> str:
    """Folder of one version of a data set."""
    return storage.join(storage.absolute(store), "datasets", name, fingerprint)


def commit_manifest(manifest: DatasetManifest) -> None:
    """Write manifest.json, the last file of a data set; from then on it exists."""
    storage.write_bytes(
        storage.join(manifest.url, "manifest.json"), manifest.model_dump_json(indent=2).encode()
    )


def load_manifest(url: str) -> DatasetManifest:
    """Read the manifest of the data set in folder `url`, wherever that folder now lies.

    Raises:
        PetsError: There is no committed data set, or its manifest is damaged.
    """
    data = storage.read_bytes(storage.join(url, "manifest.json"))
    try:
        manifest = DatasetManifest.model_validate_json(data)
    except pydantic.ValidationError as error:
        raise PetsError(f"{url}/manifest.json is damaged: {error}") from error
    return manifest.model_copy(update={"url": url})
