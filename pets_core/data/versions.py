"""The versions of data sets in a store: listed, compared and verified."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import NamedTuple, Protocol, TypeVar

import pyarrow as pa

from pets_core import storage
from pets_core.data.dataset import (
    SCHEMA_VERSION,
    load_manifest,
    open_parquet,
    read_shard,
    read_table,
)
from pets_core.errors import PetsError, did_you_mean
from pets_core.records.dataset import DatasetManifest, ShardInfo

__all__ = [
    "Difference",
    "Version",
    "choose_version",
    "diff",
    "find_version",
    "list_stored",
    "list_versions",
    "newest_version",
    "verify",
    "versions_in",
]

_NO_VERSIONS = frozenset({"contracts", "journal", "plans", "shards"})


class Difference(NamedTuple):
    """What changed from one version to another, in photo ids."""

    added: list[str]
    removed: list[str]
    changed: list[str]
    """Other content."""
    relabelled: list[str]
    moved: list[str]
    """In another split; never without another seed, fraction or list."""


class Version(Protocol):
    """A committed version of a data set, of photos or of ratings."""

    @property
    def name(self) -> str:
        """Of the data set."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hash of its content."""
        ...

    @property
    def url(self) -> str:
        """Its folder."""
        ...

    @property
    def created_at(self) -> str:
        """UTC, ISO 8601."""
        ...

    @property
    def shared_files(self) -> Collection[str]:
        """Names of its files outside its folder."""
        ...


AnyVersion = TypeVar("AnyVersion", bound=Version)


def list_versions(store: str, name: str | None = None) -> list[DatasetManifest]:
    """All committed versions, oldest first; of one data set where `name` is given."""
    return list_stored(store, "datasets", load_manifest, name)


def list_stored(
    store: str, room: str, load: Callable[[str], AnyVersion], name: str | None = None
) -> list[AnyVersion]:
    """Return all committed versions, oldest first.

    Args:
        store: Root of data sets and runs.
        room: Folder of the data sets in the store.
        load: Reads the manifest in a folder.
        name: Of one data set; None: all.
    """
    root = storage.join(storage.absolute(store), room)
    names = [name] if name else sorted(storage.list_folder(root))
    found = [m for own in names for m in versions_in(storage.join(root, own), load)]
    return sorted(found, key=_age)


def versions_in(root: str, load: Callable[[str], AnyVersion]) -> list[AnyVersion]:
    """Return the versions in the folder of a data set, whatever its name is now, oldest first."""

    def version(name: str) -> AnyVersion | None:
        url = storage.join(root, name)
        return load(url) if storage.exists(storage.join(url, "manifest.json")) else None

    names = [name for name in storage.list_folder(root) if name not in _NO_VERSIONS]
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(version, names))
    return sorted((m for m in found if m), key=_age)


def _age(manifest: Version) -> tuple[str, str]:
    return manifest.created_at, manifest.fingerprint


def newest_version(root: str) -> DatasetManifest | None:
    """The newest version in the data set folder `root` of the form this code writes, if any."""
    versions = [m for m in versions_in(root, load_manifest) if m.schema_version == SCHEMA_VERSION]
    return versions[-1] if versions else None


def find_version(store: str, wanted: str) -> DatasetManifest:
    """The version whose fingerprint begins with `wanted`, or the newest of the data set so named.

    Raises:
        PetsError: There is none, or more than one.
    """
    return choose_version(list_versions(store), store, wanted)


def choose_version(versions: Sequence[AnyVersion], store: str, wanted: str) -> AnyVersion:
    """As `find_version`, among some versions, oldest first."""
    if named := [m for m in versions if m.name == wanted]:
        return named[-1]
    found = [m for m in versions if wanted and m.fingerprint.startswith(wanted)]
    if len(found) == 1:
        return found[0]
    if found:
        listed = ", ".join(f"{m.name} {m.fingerprint}" for m in found)
        raise PetsError(f"{wanted} may be each of {listed}: give more of the fingerprint")
    known = [*(m.fingerprint for m in versions), *{m.name for m in versions}]
    raise PetsError(
        f"{wanted}: no such data set or version in {store}.{did_you_mean(wanted, known)}"
    )


def diff(old: DatasetManifest, new: DatasetManifest) -> Difference:
    """Compare two versions photo by photo."""
    before, after = _index(old), _index(new)
    both = before.keys() & after.keys()

    def differing(field: int) -> list[str]:
        return sorted(i for i in both if before[i][field] != after[i][field])

    return Difference(
        added=sorted(after.keys() - before.keys()),
        removed=sorted(before.keys() - after.keys()),
        changed=differing(0),
        relabelled=differing(1),
        moved=differing(2),
    )


def verify(manifest: DatasetManifest) -> Iterator[tuple[ShardInfo, str]]:
    """Read every shard of a version again.

    Yields:
        Each shard, and what is wrong with it; empty where nothing is.
    """
    for split in manifest.splits.values():
        for shard in split.shards:
            yield shard, _fault(manifest, shard)


def _index(manifest: DatasetManifest) -> dict[str, tuple[str, str, str]]:
    url = storage.join(manifest.url, "photos.parquet")
    table = read_table(url, ["id", "sha256", "class_name", "split"])
    return {row[0]: row[1:] for row in zip(*(c.to_pylist() for c in table.columns), strict=True)}


def _fault(manifest: DatasetManifest, shard: ShardInfo) -> str:
    try:
        data = read_shard(manifest, shard)
    except PetsError as error:
        return str(error)
    url = manifest.shard_url(shard)
    counts: Counter[bool] = Counter()
    try:
        for batch in open_parquet(io.BytesIO(data)).iter_batches(64, columns=["image", "sha256"]):
            for image, digest in zip(*(c.to_pylist() for c in batch.columns), strict=True):
                counts[sha256(image["bytes"]).hexdigest() == digest] += 1
    except (pa.ArrowInvalid, OSError) as error:
        return f"{url}: {error}"
    if counts[False] or counts[True] != shard.num_rows:
        return f"{url}: {counts[True]} of {shard.num_rows} photos are what their SHA-256 says"
    return ""
