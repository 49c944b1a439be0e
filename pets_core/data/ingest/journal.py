"""Journal of written shards, by which an interrupted ingest resumes."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from pets_core import storage
from pets_core.records.base import parse_record
from pets_core.records.dataset import ShardRecord
from pets_core.storage.layout import JOURNAL, SHARDS

__all__ = ["is_stored", "journal_keys", "load_record", "load_records", "save_record"]


def journal_keys(root: str) -> set[str]:
    """Return the keys of all shards in the journal of the data set in folder `root`."""
    names = storage.list_folder(storage.join(root, JOURNAL))
    return {name.removesuffix(".json") for name in names if name.endswith(".json")}


def is_stored(root: str, record: ShardRecord) -> bool:
    """Return whether a record's shard is in the store; True for a record without a shard."""
    return record.shard is None or storage.exists(storage.join(root, SHARDS, record.shard.path))


def load_record(root: str, key: str) -> ShardRecord | None:
    """Return the record of a shard by its key, or None if there is none.

    Raises:
        PetsError: The record is damaged.
    """
    url = _url(root, key)
    if not storage.exists(url):
        return None
    problem = f"{url} is damaged: remove it and ingest again"
    return parse_record(ShardRecord, storage.read_bytes(url), problem)


def load_records(root: str, keys: Iterable[str]) -> list[ShardRecord | None]:
    """Return the records of several shards in order, read concurrently."""
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(partial(load_record, root), keys))


def save_record(root: str, record: ShardRecord) -> None:
    """Record a shard that has been written to the store."""
    storage.write_bytes(_url(root, record.key), record.model_dump_json().encode())


def _url(root: str, key: str) -> str:
    return storage.join(root, JOURNAL, f"{key}.json")
