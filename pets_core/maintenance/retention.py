"""What a store no longer needs: old runs, checkpoints of finished ones, files of no data set."""

from __future__ import annotations

import os
import posixpath
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from pets_core import storage
from pets_core.data.dataset import load_manifest
from pets_core.data.ingest.journal import load_records
from pets_core.data.versions import Version, versions_in
from pets_core.errors import PetsError
from pets_core.models.card import CARD, read_card
from pets_core.ratings.dataset import load_ratings_manifest
from pets_core.registry.aliases import CANDIDATE, absolute, kept_models
from pets_core.runtime.runs import data_sets_in_use

__all__ = ["Garbage", "collect_garbage", "data_sets_needed", "find_old", "remove_old"]

_DAY_SECONDS = 86_400
_ROOMS: dict[str, Callable[[str], Version]] = {
    "datasets": load_manifest,
    "ratings": load_ratings_manifest,
}
"""What reads the manifest of a version, by the folder of the store."""
_CHECKPOINTS = "checkpoints"
_UNREFERENCED = "no version that is kept needs it"
_TRAINED = ("stages/train.json", "stages/ratings-train.json")


class Garbage(NamedTuple):
    """A file or folder that may go: its size, why it may, and the run if it is a whole run."""

    url: str
    num_bytes: int
    why: str
    run_id: str | None = None


def find_old(store: str, keep_days: float) -> list[Garbage]:
    """Find what may go of the runs in a store.

    A run may go when nothing in its folder has changed for `keep_days`; the checkpoints of a
    training that came to its end, a day after that. What an alias points at, or would return to on
    a rollback, is never found, nor are the predictions that made it so.

    Args:
        store: Root of data sets and runs.
        keep_days: How long a run is kept after it has ended, days.
    """
    root = storage.join(storage.absolute(store), "runs")
    kept = _kept_places(store)
    return [
        old
        for run_id in sorted(storage.list_folder(root))
        for old in _old_of(storage.join(root, run_id), run_id, kept, keep_days)
    ]


def remove_old(store: str, found: Sequence[Garbage]) -> list[Garbage]:
    """Remove what `find_old` found, but for runs that an alias has come to point at since."""
    removed = []
    for old in found:
        if old.run_id and _is_kept(old.url, _kept_places(store)):
            continue
        # Half removed, a run has no model that could be promoted.
        for name in (f"model/{CARD}", f"evaluation/{CANDIDATE}") if old.run_id else ():
            storage.remove(storage.join(old.url, name))
        storage.remove(old.url)
        removed.append(old)
    return removed


def data_sets_needed(
    store: str, grace_seconds: float = _DAY_SECONDS, without: Collection[str] = ()
) -> set[str]:
    """Fingerprints of the versions that unfinished runs go on with, or promoted models came from.

    Args:
        store: Root of data sets and runs.
        grace_seconds: How long a run may take from one stage to the next.
        without: Ids of runs that do not count.
    """
    return data_sets_in_use(store, grace_seconds, without) | _data_sets_of_kept_models(store)


def _data_sets_of_kept_models(store: str) -> set[str]:
    """Of the versions that promoted models were trained and judged on."""
    fingerprints = set()
    for model in kept_models(store):
        fingerprints.add(model.dataset_fingerprint)
        try:
            card = read_card(absolute(store, model.model_url))
        except PetsError:
            # Of a model that is gone nothing needs to be kept.
            continue
        fingerprints.add(card.dataset_fingerprint)
    return fingerprints


def _kept_places(store: str) -> list[str]:
    return [
        _place(absolute(store, url))
        for model in kept_models(store)
        for url in (model.model_url, model.predictions_url)
    ]


def _is_kept(run_url: str, kept: Sequence[str]) -> bool:
    place = _place(run_url)
    return any(other == place or other.startswith(f"{place}/") for other in kept)


def _place(url: str) -> str:
    """One spelling of where a URL leads: through links, and whatever its protocol is called."""
    fs, path = storage.filesystem(storage.absolute(url))
    return os.path.realpath(path) if storage.is_local(fs) else posixpath.normpath(path)


def _old_of(url: str, run_id: str, kept: Sequence[str], keep_days: float) -> Iterator[Garbage]:
    files, now = storage.find_files(url), time.time()
    # A folder that cannot be listed is told as empty, and is no garbage.
    if not files:
        return
    ages = {path: (now - storage.last_change(info)) / _DAY_SECONDS for path, info in files.items()}
    sizes = {path: int(info.get("size") or 0) for path, info in files.items()}
    age = min(ages.values())
    if age > keep_days and not _is_kept(url, kept):
        why = f"nothing of the run has changed for {age:.0f} days"
        yield Garbage(url, sum(sizes.values()), why, run_id)
        return
    written = [path for path in files if path.startswith(f"{_CHECKPOINTS}/")]
    # A training that is asked for again with other settings writes beside the answer of before.
    trained = [path for path in _TRAINED if path in files]
    if written and trained and min(ages[path] for path in (*written, *trained)) > 1:
        size = sum(sizes[path] for path in written)
        yield Garbage(storage.join(url, _CHECKPOINTS), size, "the training came to its end")


def collect_garbage(
    store: str,
    *,
    keep: int = 0,
    delete: bool = False,
    grace_seconds: float = _DAY_SECONDS,
    in_use: Collection[str] = (),
) -> list[Garbage]:
    """Find what no version refers to, and old versions beyond the newest few; remove it.

    Args:
        store: Root of data sets and runs.
        keep: Newest versions to keep of each data set; 0 keeps all.
        delete: Whether to remove what is found, or only to tell.
        grace_seconds: Files younger than that may belong to an ingest under way and are left.
        in_use: Fingerprints of versions that are kept, however old.

    Returns:
        What was found.
    """
    limit = time.time() - grace_seconds
    roots = [
        (storage.join(storage.absolute(store), room, name), load)
        for room, load in _ROOMS.items()
        for name in sorted(storage.list_folder(storage.join(storage.absolute(store), room)))
    ]
    garbage = []
    for root, load in roots:
        found = _unused(root, load, keep, limit, in_use)
        # An ingest may have committed since: what it uses now stays.
        if delete and found:
            still = set(_unused(root, load, keep, limit, in_use))
            found = sorted(set(found) & still, key=_removal_order)
        # Killed half-way, this leaves no version, and no note, whose files are gone.
        for item in found if delete else ():
            storage.remove(item.url)
        garbage += found
    return garbage


def _unused(
    root: str, load: Callable[[str], Version], keep: int, limit: float, in_use: Collection[str]
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
    used = _used(versions_in(root, load), keep, young, in_use)
    used |= {notes[path] for path in young & notes.keys()}
    found = []
    for path, info in files.items():
        kind, _, file = path.partition("/")
        referred = kind == "contracts" or not used.isdisjoint((kind, file, notes.get(path, "-")))
        if path not in young and (not referred or ".partial-" in file):
            size = int(info.get("size") or 0)
            found.append(Garbage(storage.join(root, path), size, _UNREFERENCED))
    return found


def _used(
    versions: Sequence[Version], keep: int, young: Collection[str], in_use: Collection[str]
) -> set[str]:
    """Names of the kept versions' folders and of their shards."""
    names = set()
    for place, manifest in enumerate(reversed(versions)):
        folder = manifest.url.rsplit("/", 1)[1]
        wanted = manifest.fingerprint in in_use or f"{folder}/manifest.json" in young
        if not keep or place < keep or wanted:
            names.add(folder)
            names.update(manifest.shared_files)
    return names


def _noted_shards(root: str, files: Iterable[str]) -> dict[str, str]:
    """The shard that each note of the journal tells of, by the note's path."""
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
    return 0 if item.url.endswith("/manifest.json") else 1 if "/journal/" in item.url else 2
