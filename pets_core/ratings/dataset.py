"""Storage of ratings: folder, Parquet files and manifest of a version.

<store>/ratings/<name>/<fingerprint>/   train.parquet, valid.parquet, test.parquet, users.parquet,
                                        items.parquet, manifest.json: one version
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pets_core import storage
from pets_core.data.dataset import open_parquet
from pets_core.errors import PetsError
from pets_core.ratings.config import RatingsSourceConfig
from pets_core.ratings.known import KnownIds, index_known
from pets_core.ratings.records import (
    RATINGS_SCHEMA_VERSION,
    RatingsFile,
    RatingsManifest,
    RatingsSplit,
)
from pets_core.ratings.sample import write_ratings_sample
from pets_core.ratings.split import SPLITS, split_by_hash, split_by_time
from pets_core.ratings.table import RatingsTable, read_ratings, read_titles
from pets_core.records.base import Split, parse_record
from pets_core.storage.layout import MANIFEST, RATINGS

__all__ = [
    "SCHEMA",
    "Ratings",
    "Vocabulary",
    "default_name",
    "ingest_ratings",
    "load_ratings",
    "load_ratings_manifest",
    "parquet_bytes",
    "read_pair_ids",
    "read_verified",
    "read_vocabulary",
]


SCHEMA = pa.schema(
    [
        pa.field("user", pa.int32(), nullable=False),
        pa.field("item", pa.int32(), nullable=False),
        pa.field("rating", pa.float32(), nullable=False),
        pa.field("time", pa.int64()),
        pa.field("cold_user", pa.string()),
        pa.field("cold_item", pa.string()),
    ]
)
"""One row per rating, sorted by user and item. `user` and `item` are indices. `time`, in the
unit of the source (dates: seconds since 1970), is set for all ratings or for none. `cold_user` and
`cold_item` are ids, set only if the index is 0."""

_ROW_GROUP_ROWS = 1 << 20


class Ratings(NamedTuple):
    """The ratings of one split.

    Attributes:
        users: User indices, int32 (N,); 0 for a user without training ratings.
        items: Item indices, int32 (N,); 0 for an item without training ratings.
        ratings: float32 (N,).
    """

    users: npt.NDArray[np.int32]
    items: npt.NDArray[np.int32]
    ratings: npt.NDArray[np.float32]


class Vocabulary(NamedTuple):
    """Ids, titles and counts by index. Index 0 (unknown) has an empty id and count 0.

    Attributes:
        users: User ids, num_users + 1.
        items: Item ids, num_items + 1.
        titles: Item titles, or ids of items without a title, num_items + 1.
        num_ratings_by_user: Training ratings of each user, int64 (num_users + 1,).
        num_ratings_by_item: Training ratings of each item, int64 (num_items + 1,).
    """

    users: list[str]
    items: list[str]
    titles: list[str]
    num_ratings_by_user: npt.NDArray[np.int64]
    num_ratings_by_item: npt.NDArray[np.int64]

    def id_arrays(self) -> tuple[pa.StringArray, pa.StringArray]:
        """Return the ids of users and items, by index."""
        return pa.array(self.users, pa.string()), pa.array(self.items, pa.string())


def ingest_ratings(store: str, cache_dir: str, source: RatingsSourceConfig) -> RatingsManifest:
    """Write ratings to the store as a version, unless this version exists.

    Args:
        store: Root of the store, a path or any fsspec URL.
        cache_dir: Local folder for downloads.
        source: Source of the ratings, and how they are split.

    Raises:
        PetsError: The source cannot be read, or its ratings are not valid. Nothing is written.
    """
    table, titles = _read_source(source, cache_dir)
    rows = _split_rows(table, source)
    trained = rows["train"]
    users = index_known(table.users[trained], len(table.user_ids))
    items = index_known(table.items[trained], len(table.item_ids))
    if min(users.num, items.num) < 2:
        raise PetsError(
            f"{_source_url(source)}: the training ratings have {users.num} user(s) and "
            f"{items.num} item(s), but need at least 2 of each: add ratings, or lower "
            "ratings.valid_fraction or ratings.test_fraction"
        )
    parts: dict[str, pa.Table] = {
        split: _table_of_split(table, rows[split], users, items) for split in rows
    }
    parts["users"] = users.vocabulary(id=table.user_ids)
    parts["items"] = items.vocabulary(id=table.item_ids, title=titles)
    data = {part: parquet_bytes(content) for part, content in parts.items()}
    files = {part: _file_record(part, parts[part].num_rows, data[part]) for part in parts}
    fingerprint = _fingerprint(files, table.y_range)
    name = source.name or default_name(source)
    manifest = RatingsManifest(
        name=name,
        fingerprint=fingerprint,
        url=storage.join(storage.absolute(store), RATINGS, name, fingerprint),
        source_url=_source_url(source),
        num_users=users.num,
        num_items=items.num,
        splits={
            split: RatingsSplit(
                **files[split].model_dump(),
                num_cold_users=users.num_cold(table.users[rows[split]]),
                num_cold_items=items.num_cold(table.items[rows[split]]),
            )
            for split in rows
        },
        users=files["users"],
        items=files["items"],
        y_range=table.y_range,
        mean=float(table.ratings[trained].mean(dtype=np.float64)),
        created_at=datetime.now(UTC).isoformat(timespec="microseconds"),
    )
    return _commit(manifest, {files[part].path: content for part, content in data.items()})


def _commit(manifest: RatingsManifest, files: Mapping[str, bytes]) -> RatingsManifest:
    """Write a version unless it exists. The manifest is written last and commits it."""
    url = storage.join(manifest.url, MANIFEST)
    if storage.exists(url):
        return load_ratings_manifest(manifest.url)
    for path, data in files.items():
        storage.write_bytes(storage.join(manifest.url, path), data)
    storage.write_bytes(url, manifest.model_dump_json(indent=2).encode())
    return manifest


def load_ratings_manifest(url: str) -> RatingsManifest:
    """Read the manifest of the version in folder `url`, which may have been moved.

    Raises:
        PetsError: There is no committed version, or its manifest is damaged.
    """
    data = storage.read_bytes(storage.join(url, MANIFEST))
    manifest = parse_record(RatingsManifest, data, f"{url}/{MANIFEST} is damaged")
    return manifest.model_copy(update={"url": url})


def load_ratings(manifest: RatingsManifest, split: Split) -> Ratings:
    """Read the ratings of a split, and verify the SHA-256 of the file.

    Raises:
        PetsError: There is no such split, or its file is missing or has another checksum.
    """
    if split not in manifest.splits:
        raise PetsError(
            f"{manifest.url} has no {split} split, only {', '.join(manifest.splits)}: raise "
            f"ratings.{split}_fraction and ingest again"
        )
    table = read_verified(manifest, manifest.splits[split])
    # Arrow's memory is read-only, which torch warns about.
    columns = (table[name].to_numpy() for name in ("user", "item", "rating"))
    return Ratings(*(np.require(column, requirements="W") for column in columns))


def read_vocabulary(manifest: RatingsManifest) -> Vocabulary:
    """Read ids and titles of users and items by index; errors as `load_ratings`."""
    users, items = read_verified(manifest, manifest.users), read_verified(manifest, manifest.items)
    return Vocabulary(
        users=users["id"].to_pylist(),
        items=items["id"].to_pylist(),
        titles=items["title"].to_pylist(),
        num_ratings_by_user=users["num_ratings"].to_numpy(),
        num_ratings_by_item=items["num_ratings"].to_numpy(),
    )


def read_pair_ids(manifest: RatingsManifest, split: Split) -> tuple[pa.Array, pa.Array]:
    """Return the user and item ids of each rating of a split, (N,) each.

    In a version of schema 1, ids without training ratings are not stored, and null here.
    """
    table = read_verified(manifest, manifest.splits[split])
    users, items = read_vocabulary(manifest).id_arrays()
    return _pair_ids(table, "user", users), _pair_ids(table, "item", items)


def _pair_ids(table: pa.Table, column: str, known: pa.StringArray) -> pa.Array:
    indices = table[column].to_numpy()
    ids = known.take(pa.array(indices, mask=indices == 0))
    cold = f"cold_{column}"
    if cold not in table.column_names:
        return ids
    return pc.coalesce(ids, table[cold].combine_chunks())


def read_verified(manifest: RatingsManifest, file: RatingsFile) -> pa.Table:
    """Read a file of a version.

    Raises:
        PetsError: The file is missing, or its SHA-256 differs from the manifest's.
    """
    url = storage.join(manifest.url, file.path)
    data = storage.read_bytes(url)
    if sha256(data).hexdigest() != file.sha256:
        raise PetsError(
            f"{url} fails its checksum (its SHA-256 differs from the manifest): restore it, or "
            "remove the folder and ingest again"
        )
    # Arrow threads that free Python bytes during interpreter shutdown abort the process.
    return open_parquet(pa.BufferReader(data)).read()


def _read_source(
    source: RatingsSourceConfig, cache_dir: str
) -> tuple[RatingsTable, pa.StringArray]:
    """Return the ratings and the item titles."""
    if source.url is None:
        with TemporaryDirectory() as folder:
            write_ratings_sample(Path(folder), seed=source.seed)
            urls = {"url": f"{folder}/ratings.csv", "items_url": f"{folder}/movies.csv"}
            return _read_source(source.model_copy(update=urls), cache_dir)
    table = read_ratings(source, cache_dir)
    return table, read_titles(source, cache_dir, table.item_ids)


def _split_rows(
    table: RatingsTable, source: RatingsSourceConfig
) -> dict[Split, npt.NDArray[np.int64]]:
    """Return the row indices of each requested split.

    Raises:
        PetsError: A split has no rows.
    """
    fractions = source.valid_fraction, source.test_fraction
    if source.split == "time":
        splits = split_by_time(table, *fractions)
    else:
        splits = split_by_hash(table, *fractions, source.seed)
    is_requested = {"train": True, "valid": fractions[0] > 0, "test": fractions[1] > 0}
    rows = {s: np.flatnonzero(splits == n) for n, s in enumerate(SPLITS) if is_requested[s]}
    if empty := [split for split, own in rows.items() if not len(own)]:
        raise PetsError(
            f"{_source_url(source)}: none of the {len(splits)} ratings is in split "
            f"{' and '.join(empty)} with ratings.valid_fraction = {fractions[0]:g} and "
            f"ratings.test_fraction = {fractions[1]:g}: add ratings, or change the fractions"
        )
    return rows


def _table_of_split(
    table: RatingsTable, rows: npt.NDArray[np.int64], users: KnownIds, items: KnownIds
) -> pa.Table:
    """Return the stored table of one split.

    Args:
        table: All ratings.
        rows: Indices of the split's ratings, (N,).
        users: Users that have training ratings.
        items: Items that have training ratings.
    """
    times = pa.nulls(len(rows)) if table.times is None else table.times[rows]
    columns = [
        users.indices[table.users[rows]],
        items.indices[table.items[rows]],
        table.ratings[rows],
        pa.array(times, pa.int64()),
        _cold_ids(table.user_ids, table.users[rows], users),
        _cold_ids(table.item_ids, table.items[rows], items),
    ]
    return pa.table(columns, schema=SCHEMA)


def _cold_ids(ids: pa.StringArray, positions: npt.NDArray[np.int32], known: KnownIds) -> pa.Array:
    """Return the ids at positions (N,); null for known ids."""
    is_known = known.indices[positions] > 0
    if is_known.all():
        return pa.nulls(len(positions), pa.string())
    return ids.take(pa.array(positions, mask=is_known))


def parquet_bytes(table: pa.Table) -> bytes:
    """Return the table as a Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, _ROW_GROUP_ROWS, compression="zstd", write_page_checksum=True)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def _file_record(part: str, num_rows: int, data: bytes) -> RatingsFile:
    return RatingsFile(path=f"{part}.parquet", num_rows=num_rows, sha256=sha256(data).hexdigest())


def _fingerprint(files: Mapping[str, RatingsFile], y_range: tuple[float, float]) -> str:
    """Return a hash of the files' content and the scale; equal ratings have equal fingerprints."""
    hashes = {part: file.sha256 for part, file in sorted(files.items())}
    return sha256(json.dumps([RATINGS_SCHEMA_VERSION, y_range, hashes]).encode()).hexdigest()[:20]


def _source_url(source: RatingsSourceConfig) -> str:
    return "the built-in sample" if source.url is None else storage.strip_query(source.url)


def default_name(source: RatingsSourceConfig) -> str:
    """Return the URL's last part without suffix; for u.data, the name of its folder."""
    if source.url is None:
        return "sample-ratings"
    # For a file in an archive (zip://ml-100k/u.data::https://...), use the path of the file.
    path = PurePosixPath(storage.absolute(storage.strip_query(source.url.split("::")[0])))
    last = path.parent.name if path.name == "u.data" else path.stem
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("-._") or "ratings"
