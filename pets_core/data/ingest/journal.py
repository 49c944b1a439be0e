"""What became of each planned shard, so that a killed ingest goes on where it stopped."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from pydantic import ValidationError

from pets_core import storage
from pets_core.errors import PetsError
from pets_core.records.dataset import ShardRecord

__all__ = ["is_there", "journal_keys", "load_record", "load_records", "save_record"]


def journal_keys(root: str) -> set[str]:
    """The keys of all shards the journal knows of the data set in folder `root`."""
    names = storage.list_folder(storage.join(root, "journal"))
    return {name.removesuffix(".json") for name in names if name.endswith(".json")}


def is_there(root: str, record: ShardRecord) -> bool:
    """Whether the shard that a record tells of is in the store."""
    return record.shard is None or storage.exists(storage.join(root, "shards", record.shard.path))


def load_record(root: str, key: str) -> ShardRecord | None:
    """What became of the shard with this key; None where that is not known.

    Raises:
        PetsError: The record is damaged.
    """
    url = _url(root, key)
    if not storage.exists(url):
        return None
    try:
        return ShardRecord.model_validate_json(storage.read_bytes(url))
    except ValidationError as error:
        raise PetsError(f"{url} is damaged: remove it and ingest again ({error})") from error


def load_records(root: str, keys: Iterable[str]) -> list[ShardRecord | None]:
    """What became of each of these shards, in their order, several read at once."""
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(partial(load_record, root), keys))


def save_record(root: str, record: ShardRecord) -> None:
    """Note a shard that is in the store."""
    storage.write_bytes(_url(root, record.key), record.model_dump_json().encode())


def _url(root: str, key: str) -> str:
    return storage.join(root, "journal", f"{key}.json")
