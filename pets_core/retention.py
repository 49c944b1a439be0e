"""What a store no longer needs: runs of long ago, and the checkpoints of finished ones."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

from pets_core import storage
from pets_core.errors import PetsError
from pets_core.models.card import read_card
from pets_core.registry import absolute, kept_models

__all__ = ["Old", "data_sets_of_kept_models", "find_old", "remove_old"]

_DAY_SECONDS = 86_400
_CHECKPOINTS, _TRAINED = "checkpoints", "stages/train.json"


class Old(NamedTuple):
    """A folder that may go, what it takes, and why it may."""

    url: str
    num_bytes: int
    why: str


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
    kept = _kept_runs(store, root)
    return [
        old
        for run_id in sorted(storage.list_folder(root))
        for old in _old_of(storage.join(root, run_id), run_id in kept, keep_days)
    ]


def remove_old(store: str, keep_days: float) -> list[Old]:
    """Remove what `find_old` finds, having looked again at what aliases point at by then."""
    found = find_old(store, keep_days)
    still = {old.url for old in find_old(store, keep_days)} if found else set()
    removed = [old for old in found if old.url in still]
    for old in removed:
        storage.remove(old.url)
    return removed


def data_sets_of_kept_models(store: str) -> set[str]:
    """Fingerprints of the versions that promoted models were trained and judged on."""
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


def _kept_runs(store: str, root: str) -> set[str]:
    places = [
        absolute(store, url)
        for model in kept_models(store)
        for url in (model.model_url, model.predictions_url)
    ]
    inside = [place.removeprefix(root + "/") for place in places if place.startswith(root + "/")]
    return {place.split("/")[0] for place in inside}


def _old_of(url: str, kept: bool, keep_days: float) -> Iterator[Old]:
    files, now = storage.find_files(url), time.time()
    # A folder that cannot be listed is told as empty, and is no garbage.
    if not files:
        return
    ages = {path: (now - storage.last_change(info)) / _DAY_SECONDS for path, info in files.items()}
    sizes = {path: int(info.get("size") or 0) for path, info in files.items()}
    age = min(ages.values())
    if age > keep_days and not kept:
        yield Old(url, sum(sizes.values()), f"nothing of the run has changed for {age:.0f} days")
        return
    written = [path for path in files if path.startswith(f"{_CHECKPOINTS}/")]
    if written and ages.get(_TRAINED, 0.0) > 1:
        size = sum(sizes[path] for path in written)
        yield Old(storage.join(url, _CHECKPOINTS), size, "the training came to its end")
