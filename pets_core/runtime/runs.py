"""The folder of a run in the store, and the results of its stages."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from pets_core import storage
from pets_core.config.pipeline import PipelineConfig
from pets_core.config.train import TrainConfig
from pets_core.config.yaml_file import parse_settings
from pets_core.errors import PetsError
from pets_core.ratings.config import RatingsConfig
from pets_core.ratings.records import RatingsRun
from pets_core.records.base import renamed
from pets_core.records.dataset import Run
from pets_core.records.target_spec import target_spec
from pets_core.runtime.request import Request, parse_request
from pets_core.storage.layout import CHECKPOINTS, MANIFEST, RUNS, SETTINGS

__all__ = [
    "STAGES_FOLDER",
    "data_sets_in_use",
    "find_run",
    "flatten_settings",
    "is_run",
    "load_result",
    "load_run_settings",
    "read_request",
    "read_stage_record",
    "run_folder",
    "save_result",
    "start_run",
    "write_request",
]

STAGES_FOLDER = "stages"
_REQUEST = ".request.json"
_PREFIXES = {Run.DATASET: "", RatingsRun.DATASET: "ratings-"}
"""Prefix of the names of a run's stages, by the file of its data set."""

Record = TypeVar("Record", bound=BaseModel)
AnyRun = TypeVar("AnyRun", Run, RatingsRun)
AnyConfig = PipelineConfig | RatingsConfig


_RENAMED_FIELDS = {"low_contrast_fraction", "quarantined_by_class"}
"""Fields of a manifest that no stage needs and that earlier versions know by other names."""


class _StageResult(BaseModel):
    """Result of a stage: hash of its request, and record as JSON."""

    model_config = ConfigDict(frozen=True)

    request_hash: str = renamed("request_hash", "asked")  # codespell:ignore asked
    record_json: str = renamed("record_json", "answer")


def run_folder(config: AnyConfig, run_id: str) -> str:
    """Return the URL of a run's folder."""
    return storage.join(storage.absolute(config.store), RUNS, run_id)


def start_run(config: AnyConfig, run: AnyRun) -> AnyRun:
    """Write a run's settings and data set to its folder; call it after validating the input."""
    url = storage.absolute(run.url)
    # The run may be resumed from another working directory.
    settings = config.model_copy(update={"store": storage.absolute(config.store)})
    text = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)
    storage.write_bytes(storage.join(url, SETTINGS), text.encode())
    dataset = run.manifest.model_dump_json().encode()
    storage.write_bytes(storage.join(url, run.DATASET), dataset)
    return run.model_copy(update={"url": url})


def is_run(url: str) -> bool:
    """Return whether a run was started in a folder, so that it can be resumed."""
    return storage.exists(storage.join(storage.absolute(url), SETTINGS))


def find_run(url: str, kind: type[AnyRun]) -> AnyRun | None:
    """Return the run in a folder with its version of the data set; None if there is no run.

    Args:
        url: Folder of the run.
        kind: `Run` for photos, `RatingsRun` for ratings.

    Raises:
        PetsError: That version of the data set was removed.
    """
    url = storage.absolute(url)
    dataset = storage.join(url, kind.DATASET)
    if not storage.exists(dataset):
        return None
    run = kind.model_validate({"url": url, "manifest": json.loads(storage.read_bytes(dataset))})
    manifest = run.manifest
    if not storage.exists(storage.join(manifest.url, MANIFEST)):
        raise PetsError(
            f"{url}: the run uses {manifest.name} {manifest.fingerprint}, which was removed from "
            "the store: start a new run"
        )
    return run


def data_sets_in_use(store: str, grace_seconds: float, without: Collection[str] = ()) -> set[str]:
    """Return the fingerprints of the data sets of runs that may still be resumed.

    A run may be resumed if its training has a checkpoint and no result, if a requested stage has
    no result, or if it has no predictions and its last change is less than `grace_seconds` ago.

    Args:
        store: Root of data sets and runs.
        grace_seconds: Longest time between two stages of a run.
        without: Ids of runs to ignore.
    """
    root = storage.join(storage.absolute(store), RUNS)
    limit, used = time.time() - grace_seconds, set()
    for name in storage.list_folder(root):
        url = storage.join(root, name)
        files = storage.list_folder(url)
        dataset = next((d for d in _PREFIXES if d in files), None)
        if dataset is None or name in without:
            continue
        prefix = _PREFIXES[dataset]
        done = storage.list_folder(storage.join(url, STAGES_FOLDER))
        is_interrupted = CHECKPOINTS in files and f"{prefix}train.json" not in done
        requested = {file.removesuffix(_REQUEST) for file in done if file.endswith(_REQUEST)}
        is_waiting = any(f"{stage}.json" not in done for stage in requested)
        last = max(map(storage.modified_time, (files[dataset], *done.values())))
        is_recent = f"{prefix}predict.json" not in done and last >= limit
        if is_interrupted or is_waiting or is_recent:
            manifest = json.loads(storage.read_bytes(storage.join(url, dataset)))
            used.add(str(manifest["fingerprint"]))
    return used


_CALLER_ONLY = {"run", "registry"}
"""Groups of settings that no stage uses."""
_FORMER_DEFAULTS: dict[str, Any] = {
    "head": "new",
    "freeze_epochs": 1,
    "epochs": 2,
    "batch_size": 64,
    "unfrozen_lr_div": 5.0,
    "lr_mult": 100.0,
    "unfreeze_to": 0,
}
"""Values of today's automatic settings in versions that did not choose them by the data set."""


def load_run_settings(url: str) -> dict[str, Any]:
    """Return the settings of a run.

    Raises:
        PetsError: There is no run in the folder, or its settings are damaged.
    """
    url = storage.absolute(url)
    path = storage.join(url, SETTINGS)
    if not storage.exists(path):
        raise PetsError(
            f"--resume {url}: no run found; set it to the folder of a run, <store>/runs/<run id>"
        )
    settings = parse_settings(storage.read_bytes(path), path)
    source = settings.get("source", {"targets": ""})
    finder = settings.get("lr_find")
    # Runs without source.targets stored the former default, steepest, which is now auto.
    if (
        isinstance(source, dict)
        and "targets" not in source
        and isinstance(finder, dict)
        and finder.get("suggestion") == "steepest"
    ):
        finder["suggestion"] = "auto"
    _fill_former_defaults(settings)
    return settings


def flatten_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings without groups, by names such as train.epochs."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{field}": inner for field, inner in value.items()}
        else:
            flat[name] = value
    return flat


def _fill_former_defaults(settings: dict[str, Any]) -> None:
    """Complete the settings of a run that began before they were chosen by the data set."""
    train, finder = settings.get("train"), settings.get("lr_find")
    if isinstance(train, dict):
        train.setdefault("unfreeze_to", _FORMER_DEFAULTS["unfreeze_to"])
    is_former = isinstance(train, dict) and "optimizer" not in train and "ratings" not in settings
    if not isinstance(train, dict) or not is_former or train.get("recipe") == "probe":
        return
    if train.get("head", "auto") == "auto":
        train["head"] = "new"
    for name in ("freeze_epochs", "epochs"):
        if train["head"] == "new" and train.get(name) is None:
            train[name] = _FORMER_DEFAULTS[name]
    source = settings.get("source")
    spec = target_spec(str(source.get("targets", "class"))) if isinstance(source, dict) else None
    is_auto = isinstance(finder, dict) and finder.get("suggestion") == "auto"
    if isinstance(finder, dict) and is_auto and spec and spec.is_numbers:
        finder["suggestion"] = "valley"


def write_request(request: Request) -> str:
    """Write a stage's request to the run's folder, for another machine, and return its URL."""
    url = storage.join(request.run_url, STAGES_FOLDER, f"{request.name}{_REQUEST}")
    # Workers of earlier versions reject newer settings and field names.
    text = request.model_dump_json(
        exclude={"manifest": _RENAMED_FIELDS, "config": _CALLER_ONLY},
        exclude_defaults=True,
        by_alias=True,
    )
    storage.write_bytes(url, text.encode())
    return url


def read_request(url: str) -> Request:
    """Read a request that `write_request` wrote."""
    return parse_request(storage.read_bytes(url))


def load_result(request: Request, record: type[Record]) -> Record | None:
    """Return the result of an equal request in an earlier attempt of the run, or None."""
    url = _url(request)
    if not storage.exists(url):
        return None
    result = _StageResult.model_validate_json(storage.read_bytes(url))
    if result.request_hash != _hash(request):
        return None
    try:
        return record.model_validate_json(result.record_json)
    except ValidationError:
        # Written by an earlier version; the stage is run again.
        return None


def read_stage_record(url: str, file: str, record: type[Record]) -> Record | None:
    """Return the record of a finished stage, whatever was requested; None if it is unreadable.

    Args:
        url: Folder of the run.
        file: Name of the stage's result file.
        record: Class of the record.
    """
    data = storage.read_bytes(storage.join(url, STAGES_FOLDER, file))
    try:
        return record.model_validate_json(_StageResult.model_validate_json(data).record_json)
    except ValidationError:
        return None


def save_result(request: Request, record: BaseModel) -> None:
    """Save a stage's record with its request's hash, so that a retry need not repeat the stage."""
    result = _StageResult(request_hash=_hash(request), record_json=record.model_dump_json())
    storage.write_bytes(_url(request), result.model_dump_json().encode())


def _url(request: Request) -> str:
    return storage.join(request.run_url, STAGES_FOLDER, f"{request.name}.json")


def _hash(request: Request) -> str:
    """Return a hash of the settings that affect the result.

    It excludes the machines and the number of ranks. It excludes defaults, too, so that a setting
    added in a later version does not change it, and has the earlier names of renamed fields.
    """
    text = _normalise(request).model_dump_json(
        exclude={
            "run_url": True,
            "is_evaluated": True,
            "manifest": _RENAMED_FIELDS,
            "config": {"launch", "store", "cache_dir", *_CALLER_ONLY},
        },
        exclude_defaults=True,
        by_alias=True,
    )
    return hashlib.sha256(text.encode()).hexdigest()


def _normalise(request: Request) -> Request:
    """Map settings to those of earlier versions, so that their results are found.

    Values that were defaults become the present defaults, which are automatic. Baselines, which
    change no other result, become true.
    """
    config = request.config
    if isinstance(config, RatingsConfig):
        return request
    train, defaults = config.train, TrainConfig()
    is_former = {
        name: train.recipe == "probe" or getattr(train, name) == value
        for name, value in _FORMER_DEFAULTS.items()
    }
    automatic = {name: getattr(defaults, name) for name, same in is_former.items() if same}
    train = train.model_copy(update=automatic)
    evaluate = config.evaluate.model_copy(update={"baselines": True})
    config = config.model_copy(update={"train": train, "evaluate": evaluate})
    return request.model_copy(update={"config": config})
