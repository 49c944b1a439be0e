"""The runs in a store: list them, and find one by id, prefix, name or `latest`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import ValidationError

from pets_core import storage
from pets_core.config.run import LATEST
from pets_core.config.yaml_file import parse_settings
from pets_core.errors import PetsError, did_you_mean
from pets_core.ratings.records import RatingsRun
from pets_core.records.base import Record
from pets_core.records.dataset import Run
from pets_core.records.evaluation import EvalReport, Metric
from pets_core.records.training import LRSuggestion, TrainResult
from pets_core.runtime.runs import STAGES_FOLDER, read_stage_record
from pets_core.storage.layout import CHECKPOINTS, EVALUATION, RUNS, SETTINGS

__all__ = [
    "RunSummary",
    "find_run_folder",
    "list_runs",
    "load_run_summary",
    "run_name",
    "run_stages",
]

State = Literal["started", "interrupted", "trained", "evaluated"]


class RunSummary(Record):
    """A run in the store.

    Attributes:
        run_id: Name of its folder: the id of the flow run.
        name: Name, given or made of data set, model and photo size.
        tags: Tags.
        notes: Notes.
        state: started: there is no result yet; interrupted: the training has a checkpoint and no
            result; trained: there is a model; evaluated: there is a report.
        created_at: Start, UTC, ISO 8601.
        dataset: Name of the data set.
        dataset_fingerprint: Version of the data set.
        backbone: Backbone, or kind of recommender.
        metric: Primary metric; None if the run is not evaluated.
        seconds: Duration of LR finder and training, of those that are done.
        url: Folder of the run.
    """

    run_id: str
    name: str
    tags: tuple[str, ...] = ()
    notes: str = ""
    state: State
    created_at: str
    dataset: str
    dataset_fingerprint: str
    backbone: str
    metric: Metric | None = None
    seconds: float = 0.0
    url: str


def run_name(settings: Mapping[str, Any], dataset: str) -> str:
    """Return the name of a run: as set, or data set, model and photo size.

    Args:
        settings: Settings of the run, as read from a file.
        dataset: Name of the data set.
    """
    if name := (settings.get("run") or {}).get("name"):
        return str(name)
    model = settings.get("model") or {}
    size = f"{model['image_size']} px" if "image_size" in model else ""
    return " · ".join(part for part in (dataset, _backbone(settings), size) if part)


def _backbone(settings: Mapping[str, Any]) -> str:
    group = settings.get("model") or {}
    return str(group.get("backbone") or (settings.get("recommender") or {}).get("model", ""))


def list_runs(store: str) -> list[RunSummary]:
    """Return the runs of a store, newest first. Folders without a run are ignored."""
    root = storage.join(storage.absolute(store), RUNS)
    found = [load_run_summary(storage.join(root, name)) for name in storage.list_folder(root)]
    runs = [summary for summary in found if summary]
    return sorted(runs, key=lambda run: (run.created_at, run.run_id), reverse=True)


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
    done = storage.list_folder(storage.join(url, STAGES_FOLDER))
    report = _report(url) if EVALUATION in files else None
    created = datetime.fromtimestamp(storage.modified_time(files[SETTINGS]), UTC)
    return RunSummary(
        run_id=url.rstrip("/").rsplit("/", 1)[1],
        name=run_name(settings, manifest["name"]),
        tags=own.get("tags", ()),
        notes=own.get("notes", ""),
        state=_state(files, done, report),
        created_at=created.isoformat(timespec="seconds"),
        dataset=manifest["name"],
        dataset_fingerprint=manifest["fingerprint"],
        backbone=_backbone(settings),
        metric=report.primary if report else None,
        seconds=sum(result.seconds for result in run_stages(url).values()),
        url=url,
    )


def _report(url: str) -> EvalReport | None:
    path = storage.join(url, EVALUATION, "report.json")
    try:
        return EvalReport.model_validate_json(storage.read_bytes(path))
    except (FileNotFoundError, ValidationError, PetsError):
        # Not finished, or of a version whose reports are not read.
        return None


def _state(files: Mapping[str, Any], done: Mapping[str, Any], report: EvalReport | None) -> State:
    if report:
        return "evaluated"
    if any(name in done for name in ("train.json", "ratings-train.json")):
        return "trained"
    return "interrupted" if CHECKPOINTS in files else "started"


def run_stages(url: str) -> dict[str, LRSuggestion | TrainResult]:
    """Return the results of the finished LR finder and training of a run, by stage."""
    done = storage.list_folder(storage.join(url, STAGES_FOLDER))
    stages: tuple[tuple[str, type[LRSuggestion | TrainResult]], ...] = (
        ("lr-find", LRSuggestion),
        ("train", TrainResult),
    )
    found = {}
    for stage, record in stages:
        for name in (f"{stage}.json", f"ratings-{stage}.json"):
            result = read_stage_record(url, name, record) if name in done else None
            if result:
                found[stage] = result
    return found


def find_run_folder(store: str, wanted: str) -> str:
    """Return the folder of a run.

    Args:
        store: URL of the store.
        wanted: `latest`, the id of a run, a unique start of it, its name, or its folder.

    Raises:
        PetsError: There is no such run, or several.
    """
    if "/" in wanted or storage.exists(storage.join(storage.absolute(wanted), SETTINGS)):
        return storage.absolute(wanted)
    runs = list_runs(store)
    if wanted == LATEST and runs:
        return runs[0].url
    found = [run for run in runs if run.run_id == wanted]
    found = found or [run for run in runs if run.name == wanted]
    found = found or [run for run in runs if wanted and run.run_id.startswith(wanted)]
    if len(found) == 1:
        return found[0].url
    if found:
        raise PetsError(
            f"{wanted} is ambiguous: {_listed(found)}. Give the start of one of these ids"
        )
    names = [*(run.run_id for run in runs), *(run.name for run in runs)]
    raise PetsError(
        f"{wanted}: no such run in {store}.{did_you_mean(wanted, names)} See `pets runs list`"
    )


def _listed(runs: Sequence[RunSummary]) -> str:
    return ", ".join(f"{run.run_id} ({run.name})" for run in runs)
