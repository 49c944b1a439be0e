"""The folder of one run in the store, and which of its stages are done."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Collection
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict

from pets_core import storage
from pets_core.config.pipeline import PipelineConfig
from pets_core.config.yaml_file import parse_settings
from pets_core.errors import PetsError
from pets_core.ratings.config import RatingsConfig
from pets_core.ratings.records import RatingsRun
from pets_core.records.dataset import DatasetManifest, Run
from pets_core.runtime.request import Request, read_request
from pets_core.storage.layout import SETTINGS

__all__ = [
    "ask_stage",
    "asked_stage",
    "data_sets_in_use",
    "find_run",
    "finish_stage",
    "finished_stage",
    "run_folder",
    "run_settings",
    "start_run",
]

_STAGES = "stages"
_REQUEST = ".request.json"

Record = TypeVar("Record", bound=BaseModel)
AnyRun = TypeVar("AnyRun", Run, RatingsRun)
AnyConfig = PipelineConfig | RatingsConfig


class _Finished(BaseModel):
    """What a stage was asked, as a hash, and what it answered, as JSON."""

    model_config = ConfigDict(frozen=True)

    asked: str
    answer: str


def run_folder(config: AnyConfig, run_id: str) -> str:
    """URL of a run's folder."""
    return storage.join(storage.absolute(config.store), "runs", run_id)


def start_run(config: AnyConfig, run: AnyRun) -> AnyRun:
    """Keep a run's settings and data set in its folder, once its input has been accepted."""
    url = storage.absolute(run.url)
    # Whoever goes on with the run may do so in another working directory.
    settings = config.model_copy(update={"store": storage.absolute(config.store)})
    text = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)
    storage.write_bytes(storage.join(url, SETTINGS), text.encode())
    dataset = run.manifest.model_dump_json().encode()
    storage.write_bytes(storage.join(url, run.DATASET), dataset)
    return run.model_copy(update={"url": url})


def find_run(url: str, kind: type[AnyRun]) -> AnyRun | None:
    """The run that began in a folder, if any, with the data set it began with.

    Args:
        url: The folder.
        kind: What it learns from: `Run`, photos; `RatingsRun`, ratings.

    Raises:
        PetsError: That version of the data set has been removed.
    """
    url = storage.absolute(url)
    dataset = storage.join(url, kind.DATASET)
    if not storage.exists(dataset):
        return None
    run = kind.model_validate({"url": url, "manifest": json.loads(storage.read_bytes(dataset))})
    manifest = run.manifest
    if not storage.exists(storage.join(manifest.url, "manifest.json")):
        raise PetsError(
            f"{url}: the run began with {manifest.name} {manifest.fingerprint}, which is no longer "
            "in the store: start a new run"
        )
    return run


def data_sets_in_use(store: str, grace_seconds: float, without: Collection[str] = ()) -> set[str]:
    """Fingerprints of the data sets that runs may still go on with.

    These are the runs whose training reached a checkpoint and not its end, those of which a stage
    is asked for and not done, and those of which something was done less than `grace_seconds` ago
    and that are not evaluated.

    Args:
        store: Root of data sets and runs.
        grace_seconds: How long a run may take from one stage to the next.
        without: Ids of runs that do not count.
    """
    root = storage.join(storage.absolute(store), "runs")
    limit, used = time.time() - grace_seconds, set()
    for name in storage.list_folder(root):
        url = storage.join(root, name)
        files = storage.list_folder(url)
        if Run.DATASET not in files or name in without:
            continue
        done = storage.list_folder(storage.join(url, _STAGES))
        stopped = "checkpoints" in files and "train.json" not in done
        asked = {file.removesuffix(_REQUEST) for file in done if file.endswith(_REQUEST)}
        waiting = any(f"{stage}.json" not in done for stage in asked)
        last = max(map(storage.last_change, (files[Run.DATASET], *done.values())))
        young = "predict.json" not in done and last >= limit
        if stopped or waiting or young:
            data = storage.read_bytes(storage.join(url, Run.DATASET))
            used.add(DatasetManifest.model_validate_json(data).fingerprint)
    return used


def run_settings(url: str) -> dict[str, Any]:
    """The settings a run began with.

    Raises:
        PetsError: No run began there, or its settings are damaged.
    """
    url = storage.absolute(url)
    path = storage.join(url, SETTINGS)
    if not storage.exists(path):
        raise PetsError(
            f"--resume {url}: no run began there; give the folder of one, <store>/runs/<run id>"
        )
    settings = parse_settings(storage.read_bytes(path), path)
    source = settings.get("source", {"targets": ""})
    finder = settings.get("lr_find")
    # What was the default before there were numbers to learn is called auto now.
    if (
        isinstance(source, dict)
        and "targets" not in source
        and isinstance(finder, dict)
        and finder.get("suggestion") == "steepest"
    ):
        finder["suggestion"] = "auto"
    return settings


def ask_stage(request: Request) -> str:
    """Leave in the run's folder what a stage is asked, for another machine; returns its URL."""
    url = storage.join(request.run_url, _STAGES, f"{request.name}{_REQUEST}")
    # A worker of an earlier version knows no setting that came since.
    storage.write_bytes(url, request.model_dump_json(exclude_defaults=True).encode())
    return url


def asked_stage(url: str) -> Request:
    """What `ask_stage` left."""
    return read_request(storage.read_bytes(url))


def finished_stage(request: Request, record: type[Record]) -> Record | None:
    """What this very stage answered when an earlier attempt of the run came to its end."""
    url = _url(request)
    if not storage.exists(url):
        return None
    finished = _Finished.model_validate_json(storage.read_bytes(url))
    if finished.asked != _hash(request):
        return None
    return record.model_validate_json(finished.answer)


def finish_stage(request: Request, answer: BaseModel) -> None:
    """Note that a stage is done, so that another attempt of the run need not repeat it."""
    finished = _Finished(asked=_hash(request), answer=answer.model_dump_json())
    storage.write_bytes(_url(request), finished.model_dump_json().encode())


def _url(request: Request) -> str:
    return storage.join(request.run_url, _STAGES, f"{request.name}.json")


def _hash(request: Request) -> str:
    """Of what changes the answer: not where it is worked out, nor by how many.

    Nor settings left as they are: those of a later version are none that this one was asked with.
    """
    asked = request.model_dump_json(
        exclude={"run_url": True, "config": {"launch": True, "store": True, "cache_dir": True}},
        exclude_defaults=True,
    )
    return hashlib.sha256(asked.encode()).hexdigest()
