"""The versions of data sets in a store: listed, compared, verified, and swept."""

from __future__ import annotations

import io
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
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
from pets_core.data.ingest.journal import load_record
from pets_core.errors import PetsError, did_you_mean
from pets_core.records.dataset import DatasetManifest, ShardInfo

__all__ = [
    "Difference",
    "Garbage",
    "Version",
    "choose_version",
    "collect_garbage",
    "diff",
    "find_version",
    "list_stored",
    "list_versions",
    "newest_version",
    "verify",
    "versions_in",
]

_NO_VERSIONS = frozenset({"contracts", "journal", "plans", "shards"})
_GRACE_SECONDS = 24 * 3600.0


class Difference(NamedTuple):
    """What changed from one version to another, in photo ids."""

    added: list[str]
    removed: list[str]
    changed: list[str]
    """Other content."""
    relabelled: list[str]
    moved: list[str]
    """In another split; never without another seed, fraction or list."""


class Garbage(NamedTuple):
    """A file or folder that nothing refers to."""

    url: str
    num_bytes: int


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


def _versions(root: str) -> list[DatasetManifest]:
    return versions_in(root, load_manifest)


def _age(manifest: Version) -> tuple[str, str]:
    return manifest.created_at, manifest.fingerprint


def newest_version(root: str) -> DatasetManifest | None:
    """The newest version in the data set folder `root` of the form this code writes, if any."""
    versions = [m for m in _versions(root) if m.schema_version == SCHEMA_VERSION]
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


def collect_garbage(
    store: str,
    *,
    keep: int = 0,
    delete: bool = False,
    grace_seconds: float = _GRACE_SECONDS,
    in_use: Collection[str] = (),
    room: str = "datasets",
    read_versions: Callable[[str], Sequence[Version]] = _versions,
) -> list[Garbage]:
    """Find what no version refers to, and old versions beyond the newest few; remove it.

    Args:
        store: Root of data sets and runs.
        keep: Newest versions to keep of each data set; 0 keeps all.
        delete: Whether to remove what is found, or only to tell.
        grace_seconds: Files younger than that may belong to an ingest under way and are left.
        in_use: Fingerprints of versions that are kept, however old.
        room: Folder of the data sets in the store.
        read_versions: Returns the versions in the folder of a data set, oldest first.

    Returns:
        What was found.
    """
    datasets = storage.join(storage.absolute(store), room)
    limit = time.time() - grace_seconds
    garbage = []
    for name in sorted(storage.list_folder(datasets)):
        root = storage.join(datasets, name)
        found = _unused(root, read_versions, keep, limit, in_use)
        # An ingest may have committed since: what it uses now stays.
        if delete and found:
            still = _unused(root, read_versions, keep, limit, in_use)
            found = sorted(set(found) & set(still), key=_removal_order)
        # Killed half-way, this leaves no version, and no note, whose files are gone.
        for item in found if delete else ():
            storage.remove(item.url)
        garbage += found
    return garbage


def _unused(
    root: str,
    read_versions: Callable[[str], Sequence[Version]],
    keep: int,
    limit: float,
    in_use: Collection[str],
) -> list[Garbage]:
    """The files of a data set that were last changed before `limit` and that nothing refers to."""
    files = {
        f"{folder}/{file}": info
        for folder in storage.list_folder(root)
        for file, info in storage.list_folder(storage.join(root, folder)).items()
    }
    young = {path for path, info in files.items() if storage.last_change(info) >= limit}
    notes = _noted_shards(root, files)
    # A shard may be older than the note that an ingest under way goes by.
    used = _used(read_versions(root), keep, young, in_use) | {
        notes[p] for p in young & notes.keys()
    }
    found = []
    for path, info in files.items():
        kind, _, file = path.partition("/")
        referred = kind == "contracts" or not used.isdisjoint((kind, file, notes.get(path, "-")))
        if path not in young and (not referred or ".partial-" in file):
            found.append(Garbage(storage.join(root, path), int(info.get("size") or 0)))
    return found


def _used(
    versions: Sequence[Version], keep: int, young: Collection[str], in_use: Collection[str]
) -> set[str]:
    """Names of the kept versions' folders and of their shards."""
    names = set()
    for place, manifest in enumerate(reversed(versions)):
        wanted = manifest.fingerprint in in_use or _manifest_path(manifest) in young
        if not keep or place < keep or wanted:
            names.add(manifest.url.rsplit("/", 1)[1])
            names.update(manifest.shared_files)
    return names


def _manifest_path(manifest: Version) -> str:
    return f"{manifest.url.rsplit('/', 1)[1]}/manifest.json"


def _noted_shards(root: str, files: Iterable[str]) -> dict[str, str]:
    """The shard that each note of the journal tells of, by the note's path."""
    keys = {
        path: path.removeprefix("journal/").removesuffix(".json")
        for path in files
        if path.startswith("journal/") and path.endswith(".json")
    }
    with ThreadPoolExecutor(16) as pool:
        records = list(pool.map(lambda key: load_record(root, key), keys.values()))
    return {
        path: record.shard.path
        for path, record in zip(keys, records, strict=True)
        if record is not None and record.shard is not None
    }


def _removal_order(item: Garbage) -> int:
    return 0 if item.url.endswith("/manifest.json") else 1 if "/journal/" in item.url else 2


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
