"""What a store no longer needs: old runs, checkpoints of finished ones, unused data sets."""

from __future__ import annotations

import os
import posixpath
import time
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from pets_core import storage
from pets_core.data.versions import Garbage, collect_garbage
from pets_core.errors import PetsError
from pets_core.models.card import CARD, read_card
from pets_core.ratings.versions import collect_ratings_garbage
from pets_core.registry.aliases import CANDIDATE, absolute, kept_models
from pets_core.runtime.runs import data_sets_in_use

__all__ = ["Old", "collect_data_sets", "data_sets_needed", "find_old", "remove_old"]

_DAY_SECONDS = 86_400
_CHECKPOINTS = "checkpoints"
_TRAINED = ("stages/train.json", "stages/ratings-train.json")


class Old(NamedTuple):
    """A folder that may go: what it takes, why it may, and the run if it is the whole run."""

    url: str
    num_bytes: int
    why: str
    run_id: str | None = None


def find_old(store: str, keep_days: float) -> list[Old]:
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


def remove_old(store: str, found: Sequence[Old]) -> list[Old]:
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


def collect_data_sets(
    store: str,
    *,
    keep: int = 0,
    delete: bool = False,
    grace_seconds: float = _DAY_SECONDS,
    without: Collection[str] = (),
) -> list[Garbage]:
    """Find, or remove, the files of data sets and of ratings that nothing needs.

    Args:
        store: Root of data sets and runs.
        keep: Newest versions to keep of each data set; 0 keeps all.
        delete: Whether to remove what is found.
        grace_seconds: Younger files are kept, and so are the versions of runs between two stages.
        without: Ids of runs that do not count.
    """
    in_use = data_sets_needed(store, grace_seconds, without)
    return [
        item
        for collect in (collect_garbage, collect_ratings_garbage)
        for item in collect(
            store, keep=keep, delete=delete, grace_seconds=grace_seconds, in_use=in_use
        )
    ]


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


def _old_of(url: str, run_id: str, kept: Sequence[str], keep_days: float) -> Iterator[Old]:
    files, now = storage.find_files(url), time.time()
    # A folder that cannot be listed is told as empty, and is no garbage.
    if not files:
        return
    ages = {path: (now - storage.last_change(info)) / _DAY_SECONDS for path, info in files.items()}
    sizes = {path: int(info.get("size") or 0) for path, info in files.items()}
    age = min(ages.values())
    if age > keep_days and not _is_kept(url, kept):
        why = f"nothing of the run has changed for {age:.0f} days"
        yield Old(url, sum(sizes.values()), why, run_id)
        return
    written = [path for path in files if path.startswith(f"{_CHECKPOINTS}/")]
    # A training that is asked for again with other settings writes beside the answer of before.
    trained = [path for path in _TRAINED if path in files]
    if written and trained and min(ages[path] for path in (*written, *trained)) > 1:
        size = sum(sizes[path] for path in written)
        yield Old(storage.join(url, _CHECKPOINTS), size, "the training came to its end")
