"""The runs in a store: list them, and find one by id, prefix, name or `latest`."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import ValidationError

from pets_core import storage
from pets_core.config.run import LATEST
from pets_core.config.yaml_file import parse_settings
from pets_core.embeddings.file import EMBEDDINGS
from pets_core.errors import PetsError, did_you_mean
from pets_core.ratings.records import RatingsRun
from pets_core.records.base import Record
from pets_core.records.dataset import Run
from pets_core.records.evaluation import EvalReport, Metric
from pets_core.records.training import LRSuggestion, TrainResult
from pets_core.registry.aliases import CANDIDATE, Candidate
from pets_core.runtime.runs import STAGES_FOLDER, is_run, read_stage_record
from pets_core.storage.layout import (
    CHECKPOINTS,
    EVALUATION,
    REPORT_RECORD,
    RUNS,
    SETTINGS,
    SWEEP,
)

__all__ = [
    "RunSummary",
    "find_run_folder",
    "list_runs",
    "load_report",
    "load_run_summary",
    "run_name",
    "run_stages",
]

State = Literal["started", "unfinished", "trained", "completed", "evaluated"]

_LOGGER = logging.getLogger(__name__)
_THREADS = 8
_COMPLETED = (SWEEP, EMBEDDINGS.partition("/")[0])
"""Files that end runs without an evaluation."""


class RunSummary(Record):
    """A run in the store.

    Attributes:
        run_id: Name of its folder: the id of the flow run.
        name: Name, given or made of data set, model and photo size.
        tags: Tags.
        notes: Notes.
        state: started: there is no result yet; unfinished: the training has a checkpoint and no
            result, because it is running or was interrupted; trained: there is a model; completed:
            a sweep or the embeddings are done; evaluated: there is a report.
        created_at: Start, UTC, ISO 8601; None if the store has no modification times.
        dataset: Name of the data set.
        dataset_fingerprint: Version of the data set.
        backbone: Backbone, or kind of recommender.
        metric: Primary metric; None if the run is not evaluated.
        model_url: Folder of the evaluated model; None if the run is not evaluated.
        seconds: Duration of LR finder and training, of those that are done.
        url: Folder of the run.
    """

    run_id: str
    name: str
    tags: tuple[str, ...] = ()
    notes: str = ""
    state: State
    created_at: str | None
    dataset: str
    dataset_fingerprint: str
    backbone: str
    metric: Metric | None = None
    model_url: str | None = None
    seconds: float = 0.0
    url: str


def run_name(settings: Mapping[str, Any], dataset: str, backbone: str | None = None) -> str:
    """Return the name of a run: as set, or data set, model and photo size.

    Args:
        settings: Settings of the run, as read from a file.
        dataset: Name of the data set.
        backbone: Backbone of the evaluated model, if it is not that of the settings, whose photo
            size is then omitted.
    """
    if name := (settings.get("run") or {}).get("name"):
        return str(name)
    model, own = settings.get("model") or {}, _backbone(settings)
    has_size = "image_size" in model and backbone in (None, own)
    size = f"{model['image_size']} px" if has_size else ""
    return " · ".join(part for part in (dataset, backbone or own, size) if part)


def _backbone(settings: Mapping[str, Any]) -> str:
    group = settings.get("model") or {}
    return str(group.get("backbone") or (settings.get("recommender") or {}).get("model", ""))


def list_runs(store: str) -> list[RunSummary]:
    """Return the runs of a store, newest first.

    Folders without a run, and the trainings that a sweep or the search for the weight decay runs,
    are ignored. A damaged run is logged and ignored.
    """
    root = storage.join(storage.absolute(store), RUNS)
    names = set(storage.list_folder(root))
    urls = [storage.join(root, name) for name in sorted(names) if not _is_trial(name, names)]
    with ThreadPoolExecutor(_THREADS) as pool:
        runs = [summary for summary in pool.map(_try_load, urls) if summary]
    return sorted(runs, key=lambda run: (run.created_at or "", run.run_id), reverse=True)


def _is_trial(name: str, names: Collection[str]) -> bool:
    """Return whether a folder is a training within another run: `<run>-wd-...`, `<run>-001-0`."""
    parts = name.split("-")
    return any("-".join(parts[:end]) in names for end in range(1, len(parts)))


def _try_load(url: str) -> RunSummary | None:
    try:
        return load_run_summary(url)
    except (PetsError, OSError, ValueError, KeyError, TypeError) as error:
        _LOGGER.warning("%s cannot be listed: %s: %s", url, type(error).__name__, error)
        return None


def load_run_summary(url: str) -> RunSummary | None:
    """Return the summary of a run; None if the folder has none.

    Raises:
        PetsError: The settings are damaged.
    """
    files = storage.list_folder(url)
    dataset_file = next((each.DATASET for each in (Run, RatingsRun) if each.DATASET in files), None)
    if SETTINGS not in files or dataset_file is None:
        return None
    path = storage.join(url, SETTINGS)
    settings = parse_settings(storage.read_bytes(path), path)
    manifest = json.loads(storage.read_bytes(storage.join(url, dataset_file)))
    own = settings.get("run") or {}
    report = load_report(url) if EVALUATION in files else None
    stages = run_stages(url, report.model_url if report else None)
    backbone = _evaluated_backbone(url) if report else None
    created = storage.modified_time(files[SETTINGS])
    return RunSummary(
        run_id=url.rstrip("/").rsplit("/", 1)[1],
        name=run_name(settings, manifest["name"], backbone),
        tags=own.get("tags", ()),
        notes=own.get("notes", ""),
        state=_state(files, stages, report),
        created_at=_format_time(created) if math.isfinite(created) else None,
        dataset=manifest["name"],
        dataset_fingerprint=manifest["fingerprint"],
        backbone=backbone or _backbone(settings),
        metric=report.primary if report else None,
        model_url=report.model_url if report else None,
        seconds=sum(result.seconds for result in stages.values()),
        url=url,
    )


def _format_time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def load_report(url: str) -> EvalReport | None:
    """Return the evaluation of a run; None if there is none, or one of an unknown version."""
    path = storage.join(url, EVALUATION, REPORT_RECORD)
    try:
        return EvalReport.model_validate_json(storage.read_bytes(path))
    except (FileNotFoundError, ValidationError, PetsError):
        return None


def _evaluated_backbone(url: str) -> str | None:
    path = storage.join(url, EVALUATION, CANDIDATE)
    if not storage.exists(path):
        return None
    return Candidate.model_validate_json(storage.read_bytes(path)).backbone


def _state(files: Mapping[str, Any], stages: Mapping[str, Any], report: EvalReport | None) -> State:
    if report:
        return "evaluated"
    if any(name in files for name in _COMPLETED):
        return "completed"
    if "train" in stages:
        return "trained"
    return "unfinished" if CHECKPOINTS in files else "started"


def run_stages(url: str, model_url: str | None) -> dict[str, LRSuggestion | TrainResult]:
    """Return the results of LR finder and training of a run, by stage, of those that are done.

    Args:
        url: Folder of the run.
        model_url: Its evaluated model, if any: that of a recommender may be trained in a folder of
            its own, `<run>-wd-<decay>`.
    """
    folders = [url]
    if model_url and model_url.startswith(f"{url}-"):
        folders.append(model_url.rsplit("/", 1)[0])
    stages: tuple[tuple[str, type[LRSuggestion | TrainResult]], ...] = (
        ("lr-find", LRSuggestion),
        ("train", TrainResult),
    )
    found: dict[str, LRSuggestion | TrainResult] = {}
    for folder in folders:
        done = storage.list_folder(storage.join(folder, STAGES_FOLDER))
        for stage, record in stages:
            for name in (f"{stage}.json", f"ratings-{stage}.json"):
                result = read_stage_record(folder, name, record) if name in done else None
                if result:
                    found.setdefault(stage, result)
    return found


def find_run_folder(store: str, wanted: str) -> str:
    """Return the folder of a run.

    Args:
        store: URL of the store.
        wanted: `latest`, the id of a run, a unique start of it, its name, or its folder.

    Raises:
        PetsError: There is no such run, or several.
    """
    if "/" in wanted:
        url = storage.absolute(wanted).rstrip("/")
        if not is_run(url):
            raise PetsError(f"{url}: no run found in this folder. See `pets runs list`")
        return url
    own = storage.join(storage.absolute(store), RUNS, wanted)
    if wanted and wanted != LATEST and is_run(own):
        return own
    runs = list_runs(store)
    if wanted == LATEST and runs:
        return runs[0].url
    found = [run for run in runs if run.name == wanted]
    found = found or [run for run in runs if wanted and run.run_id.startswith(wanted)]
    if len(found) == 1:
        return found[0].url
    if found:
        raise PetsError(f"{wanted} is ambiguous: {_listed(found)}. Use the id of one of them")
    names = [*(run.run_id for run in runs), *(run.name for run in runs)]
    raise PetsError(
        f"{wanted}: no such run in {store}.{did_you_mean(wanted, names)} See `pets runs list`"
    )


def _listed(runs: Sequence[RunSummary]) -> str:
    return ", ".join(f"{run.run_id} ({run.name})" for run in runs)
