"""Garbage collection of a store: old runs, checkpoints of finished runs, unreferenced files."""

from __future__ import annotations

import math
import os
import posixpath
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from pets_core import storage
from pets_core.data.dataset import load_manifest
from pets_core.data.ingest.journal import load_records
from pets_core.data.versions import Version, load_versions
from pets_core.errors import PetsError
from pets_core.models.card import CARD, read_card
from pets_core.ratings.dataset import load_ratings_manifest
from pets_core.registry.aliases import CANDIDATE, absolute, kept_models
from pets_core.runtime.runs import data_sets_in_use, is_run
from pets_core.storage.layout import (
    CHECKPOINTS,
    CONTRACTS,
    DATASETS,
    JOURNAL,
    MANIFEST,
    RATINGS,
    RUNS,
)

__all__ = ["Garbage", "collect_garbage", "data_sets_needed", "find_old", "find_runs", "remove_old"]

_DAY_SECONDS = 86_400
_ACTIVE_SECONDS = 300.0
"""A run that is active writes a checkpoint or a result more often, except for a long epoch."""
_MANIFEST_LOADERS: dict[str, Callable[[str], Version]] = {
    DATASETS: load_manifest,
    RATINGS: load_ratings_manifest,
}
"""Functions that load the manifest of a version, by folder of the store."""
_UNREFERENCED = "not referenced by a kept version"
_TRAINING_RESULTS = ("stages/train.json", "stages/ratings-train.json")


class Garbage(NamedTuple):
    """File or folder that may be removed.

    Attributes:
        url: URL of the file or folder.
        num_bytes: Size in bytes.
        reason: Reason to remove it.
        run_id: Id of the run if the folder is a whole run, else None.
    """

    url: str
    num_bytes: int
    reason: str
    run_id: str | None = None


def find_old(store: str, keep_days: float) -> list[Garbage]:
    """Find the runs and checkpoints that may be removed.

    A run may be removed if no file in its folder has changed for `keep_days`; the checkpoints of a
    finished training, one day after its end. Models that an alias points at or would return to on
    a rollback are kept, and so are their predictions.

    Args:
        store: URL of the store.
        keep_days: Days to keep a run after its last change.
    """
    root = storage.join(storage.absolute(store), RUNS)
    kept = _kept_paths(store)
    return [
        old
        for run_id in sorted(storage.list_folder(root))
        for old in _run_garbage(storage.join(root, run_id), run_id, kept, keep_days)
    ]


def find_runs(store: str, urls: Sequence[str]) -> list[Garbage]:
    """Return the given runs as garbage, with the trainings that belong to them.

    Args:
        store: URL of the store.
        urls: Folders of runs.

    Raises:
        PetsError: A folder is no run of the store, a run has changed within the last minutes, or
            an alias points at the model of a run or would on a rollback.
    """
    root, kept = storage.join(storage.absolute(store), RUNS), _kept_paths(store)
    names = sorted(storage.list_folder(root))
    found = []
    for url in urls:
        run_id = url.rsplit("/", 1)[1]
        if run_id not in names or url != storage.join(root, run_id) or not is_run(url):
            raise PetsError(f"{url}: is not the folder of a run in {root}. Set --store")
        for name in [run_id, *(each for each in names if each.startswith(f"{run_id}-"))]:
            found.append(_run_to_remove(storage.join(root, name), name, kept))
    return found


def _run_to_remove(url: str, run_id: str, kept: Sequence[str]) -> Garbage:
    if _is_kept(url, kept):
        raise PetsError(
            f"{url}: an alias points at its model or would on a rollback. Promote another model"
        )
    files = storage.find_files(url).values()
    age = time.time() - max(map(storage.modified_time, files), default=0.0)
    if not math.isfinite(age):
        raise PetsError(
            f"{url}: the time of its last change is unknown, so the run may be active. Remove the "
            "folder with a tool of the store"
        )
    if age < _ACTIVE_SECONDS:
        raise PetsError(
            f"{url}: changed {age:.0f} seconds ago, so the run may be active. Stop it, or wait "
            f"{_ACTIVE_SECONDS / 60:.0f} minutes"
        )
    return Garbage(url, sum(int(info.get("size") or 0) for info in files), "given", run_id)


def remove_old(store: str, found: Sequence[Garbage]) -> list[Garbage]:
    """Remove garbage from `find_old`, except runs promoted since; return the removed items."""
    removed = []
    for old in found:
        if old.run_id and _is_kept(old.url, _kept_paths(store)):
            continue
        # These go first: a partly removed run must not have a model that can be promoted.
        for name in (f"model/{CARD}", f"evaluation/{CANDIDATE}") if old.run_id else ():
            storage.remove(storage.join(old.url, name))
        storage.remove(old.url)
        removed.append(old)
    return removed


def data_sets_needed(
    store: str, grace_seconds: float = _DAY_SECONDS, without: Collection[str] = ()
) -> set[str]:
    """Return the fingerprints of the versions that unfinished runs or promoted models need.

    Args:
        store: URL of the store.
        grace_seconds: Maximum time between two stages of a run that counts as unfinished.
        without: Ids of runs to ignore.
    """
    return data_sets_in_use(store, grace_seconds, without) | _data_sets_of_kept_models(store)


def _data_sets_of_kept_models(store: str) -> set[str]:
    """Return the fingerprints of the versions that promoted models were trained or evaluated on."""
    fingerprints = set()
    for model in kept_models(store):
        fingerprints.add(model.dataset_fingerprint)
        try:
            card = read_card(absolute(store, model.model_url))
        except PetsError:
            # A removed model needs no data.
            continue
        fingerprints.add(card.dataset_fingerprint)
    return fingerprints


def _kept_paths(store: str) -> list[str]:
    return [
        _canonical_path(absolute(store, url))
        for model in kept_models(store)
        for url in (model.model_url, model.predictions_url)
    ]


def _is_kept(run_url: str, kept: Sequence[str]) -> bool:
    path = _canonical_path(run_url)
    return any(other == path or other.startswith(f"{path}/") for other in kept)


def _canonical_path(url: str) -> str:
    """Return the path of a URL with links resolved and without its protocol."""
    fs, path = storage.filesystem(storage.absolute(url))
    return os.path.realpath(path) if storage.is_local(fs) else posixpath.normpath(path)


def _run_garbage(url: str, run_id: str, kept: Sequence[str], keep_days: float) -> Iterator[Garbage]:
    files, now = storage.find_files(url), time.time()
    # A folder that cannot be listed looks empty, and must not be removed.
    if not files:
        return
    ages = {
        path: (now - storage.modified_time(info)) / _DAY_SECONDS for path, info in files.items()
    }
    sizes = {path: int(info.get("size") or 0) for path, info in files.items()}
    age = min(ages.values())
    if age > keep_days and not _is_kept(url, kept):
        reason = f"run unchanged for {age:.0f} days"
        yield Garbage(url, sum(sizes.values()), reason, run_id)
        return
    checkpoints = [path for path in files if path.startswith(f"{CHECKPOINTS}/")]
    # A training that is repeated with other settings writes while the old result exists.
    results = [path for path in _TRAINING_RESULTS if path in files]
    if checkpoints and results and min(ages[path] for path in (*checkpoints, *results)) > 1:
        size = sum(sizes[path] for path in checkpoints)
        yield Garbage(storage.join(url, CHECKPOINTS), size, "training finished")


def collect_garbage(
    store: str,
    *,
    keep: int = 0,
    delete: bool = False,
    grace_seconds: float = _DAY_SECONDS,
    in_use: Collection[str] = (),
) -> list[Garbage]:
    """Find unreferenced files and old versions of data sets, and remove them if `delete` is set.

    Args:
        store: URL of the store.
        keep: Number of newest versions to keep of each data set; 0 keeps all.
        delete: Whether to remove the garbage.
        grace_seconds: Minimum age of garbage; younger files may belong to an active ingest.
        in_use: Fingerprints of versions to keep at any age.

    Returns:
        The garbage found.
    """
    limit = time.time() - grace_seconds
    roots = [
        (storage.join(storage.absolute(store), folder, name), load)
        for folder, load in _MANIFEST_LOADERS.items()
        for name in sorted(storage.list_folder(storage.join(storage.absolute(store), folder)))
    ]
    garbage = []
    for root, load in roots:
        found = _unused(root, load, keep, limit, in_use)
        # An ingest may have committed in the meantime: keep the files it refers to.
        if delete and found:
            still_unused = set(_unused(root, load, keep, limit, in_use))
            found = sorted(set(found) & still_unused, key=_removal_order)
        # In this order, an interrupt leaves no version and no journal entry with missing files.
        for item in found if delete else ():
            storage.remove(item.url)
        garbage += found
    return garbage


def _unused(
    root: str, load: Callable[[str], Version], keep: int, limit: float, in_use: Collection[str]
) -> list[Garbage]:
    """Return the unreferenced files of a data set that were last changed before `limit`."""
    files = {
        f"{folder}/{file}": info
        for folder in storage.list_folder(root)
        for file, info in storage.list_folder(storage.join(root, folder)).items()
    }
    young = {path for path, info in files.items() if storage.modified_time(info) >= limit}
    journal = _journal_shards(root, files)
    # A shard may be older than the journal entry through which an active ingest reuses it.
    used = _used(load_versions(root, load), keep, young, in_use)
    used |= {journal[path] for path in young & journal.keys()}
    found = []
    for path, info in files.items():
        kind, _, file = path.partition("/")
        names = (kind, file, journal.get(path, "-"))
        is_used = kind == CONTRACTS or not used.isdisjoint(names)
        if path not in young and (not is_used or ".partial-" in file):
            size = int(info.get("size") or 0)
            found.append(Garbage(storage.join(root, path), size, _UNREFERENCED))
    return found


def _used(
    versions: Sequence[Version], keep: int, young: Collection[str], in_use: Collection[str]
) -> set[str]:
    """Return the folder names of the kept versions and the names of their shards."""
    names = set()
    for index, manifest in enumerate(reversed(versions)):
        folder = manifest.url.rsplit("/", 1)[1]
        is_needed = manifest.fingerprint in in_use or f"{folder}/{MANIFEST}" in young
        if not keep or index < keep or is_needed:
            names.add(folder)
            names.update(manifest.shared_files)
    return names


def _journal_shards(root: str, files: Iterable[str]) -> dict[str, str]:
    """Return the shard of each journal entry, by the path of the entry."""
    keys = {
        path: path.removeprefix("journal/").removesuffix(".json")
        for path in files
        if path.startswith("journal/") and path.endswith(".json")
    }
    records = load_records(root, keys.values())
    return {
        path: record.shard.path
        for path, record in zip(keys, records, strict=True)
        if record is not None and record.shard is not None
    }


def _removal_order(item: Garbage) -> int:
    return 0 if item.url.endswith(f"/{MANIFEST}") else 1 if f"/{JOURNAL}/" in item.url else 2
