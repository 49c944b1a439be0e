"""List, find, compare and verify the versions of data sets in a store."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import Protocol, TypeVar

import pyarrow as pa

from pets_core import storage
from pets_core.data.dataset import (
    REUSABLE_SCHEMA_VERSIONS,
    load_manifest,
    open_parquet,
    read_photo_table,
    read_shard,
)
from pets_core.errors import PetsError, did_you_mean
from pets_core.records.dataset import DatasetManifest, ShardInfo
from pets_core.storage.layout import CONTRACTS, DATASETS, JOURNAL, MANIFEST, PHOTOS, PLANS, SHARDS

__all__ = [
    "Version",
    "choose_version",
    "compare_versions",
    "diff",
    "find_version",
    "list_all_versions",
    "list_versions",
    "load_versions",
    "newest_version",
    "verify",
]

_OTHER_FOLDERS = frozenset({CONTRACTS, JOURNAL, PLANS, SHARDS})


class Version(Protocol):
    """Committed version of a data set of photos or ratings."""

    @property
    def name(self) -> str:
        """Name of the data set."""

    @property
    def fingerprint(self) -> str:
        """Hash of the version's content."""

    @property
    def url(self) -> str:
        """Folder of the version."""

    @property
    def created_at(self) -> str:
        """Time of the commit, UTC, ISO 8601."""

    @property
    def shared_files(self) -> Collection[str]:
        """Names of the version's files outside its folder."""


AnyVersion = TypeVar("AnyVersion", bound=Version)


def list_versions(store: str, name: str | None = None) -> list[DatasetManifest]:
    """Return all committed versions, or those of the data set `name`, oldest first."""
    return list_all_versions(store, DATASETS, load_manifest, name)


def list_all_versions(
    store: str, folder: str, load: Callable[[str], AnyVersion], name: str | None = None
) -> list[AnyVersion]:
    """Return the manifests of committed versions, oldest first.

    Args:
        store: Root of data sets and runs.
        folder: Folder of the data sets in the store.
        load: Reads the manifest in a version's folder.
        name: Name of a data set; None: all data sets.
    """
    root = storage.join(storage.absolute(store), folder)
    names = [name] if name else sorted(storage.list_folder(root))
    found = [m for own in names for m in load_versions(storage.join(root, own), load)]
    return sorted(found, key=_age)


def load_versions(root: str, load: Callable[[str], AnyVersion]) -> list[AnyVersion]:
    """Return the versions in a data set's folder, oldest first; the folder may be renamed."""

    def version(name: str) -> AnyVersion | None:
        url = storage.join(root, name)
        return load(url) if storage.exists(storage.join(url, MANIFEST)) else None

    names = [name for name in storage.list_folder(root) if name not in _OTHER_FOLDERS]
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(version, names))
    return sorted((m for m in found if m), key=_age)


def _age(manifest: Version) -> tuple[str, str]:
    return manifest.created_at, manifest.fingerprint


def newest_version(root: str) -> DatasetManifest | None:
    """Return the newest version in folder `root` that a new version can build on, if any."""
    versions = load_versions(root, load_manifest)
    reusable = [m for m in versions if m.schema_version in REUSABLE_SCHEMA_VERSIONS]
    return reusable[-1] if reusable else None


def find_version(store: str, wanted: str) -> DatasetManifest:
    """Return a version by the start of its fingerprint, or the newest of a data set by its name.

    Raises:
        PetsError: `wanted` matches no version, or more than one.
    """
    return choose_version(list_versions(store), store, wanted)


def choose_version(versions: Sequence[AnyVersion], store: str, wanted: str) -> AnyVersion:
    """Choose from `versions`, sorted oldest first, as `find_version` does."""
    if named := [m for m in versions if m.name == wanted]:
        return named[-1]
    found = [m for m in versions if wanted and m.fingerprint.startswith(wanted)]
    if len(found) == 1:
        return found[0]
    if found:
        listed = ", ".join(f"{m.name} {m.fingerprint}" for m in found)
        raise PetsError(f"{wanted} is ambiguous ({listed}): give more characters")
    known = [*(m.fingerprint for m in versions), *{m.name for m in versions}]
    raise PetsError(
        f"{wanted}: no such data set or version in {store}.{did_you_mean(wanted, known)}"
    )


def diff(old: DatasetManifest, new: DatasetManifest) -> dict[str, list[str]]:
    """Compare the photos of two versions.

    Returns:
        Photo ids by "added", "removed", "changed" (their content), "relabelled" and "moved" (to
        another split; only a new seed, fraction or predefined split moves photos).
    """
    return compare_versions(_index(old), _index(new), ["changed", "relabelled", "moved"])


def compare_versions(
    before: Mapping[str, Sequence[object]],
    after: Mapping[str, Sequence[object]],
    fields: Sequence[str],
) -> dict[str, list[str]]:
    """Compare two versions sample by sample.

    Args:
        before: Fields of each sample of the earlier version, by id.
        after: Fields of each sample of the later version, by id.
        fields: Name of the change of each field.

    Returns:
        Sorted ids by "added", "removed" and each of `fields`, in this order.
    """
    common = sorted(before.keys() & after.keys())
    difference = {
        "added": sorted(after.keys() - before.keys()),
        "removed": sorted(before.keys() - after.keys()),
    }
    for position, name in enumerate(fields):
        difference[name] = [id_ for id_ in common if before[id_][position] != after[id_][position]]
    return difference


def verify(manifest: DatasetManifest) -> Iterator[tuple[ShardInfo, str]]:
    """Verify the checksum of each shard of a version, and of the photos in it.

    Yields:
        Each shard and its error message; the message is empty if the shard is intact.
    """
    for split in manifest.splits.values():
        for shard in split.shards:
            yield shard, _check_shard(manifest, shard)


def _index(manifest: DatasetManifest) -> dict[str, tuple[str, str, str]]:
    url = storage.join(manifest.url, PHOTOS)
    table = read_photo_table(url, ["id", "sha256", "target_text", "split"])
    return {row[0]: row[1:] for row in zip(*(c.to_pylist() for c in table.columns), strict=True)}


def _check_shard(manifest: DatasetManifest, shard: ShardInfo) -> str:
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
        return f"{url}: {counts[True]} of {shard.num_rows} photos match their SHA-256"
    return ""
