"""The folder of one run in the store, and which of its stages are done."""

from __future__ import annotations

import hashlib
from typing import TypeVar

import yaml
from pydantic import BaseModel, ConfigDict

from pets_core import storage
from pets_core.config import PipelineConfig
from pets_core.launch import WorkRequest

__all__ = ["finish_stage", "finished_stage", "start_run"]

Record = TypeVar("Record", bound=BaseModel)


class _Finished(BaseModel):
    """What a stage was asked, as a hash, and what it answered, as JSON."""

    model_config = ConfigDict(frozen=True)

    asked: str
    answer: str


def start_run(config: PipelineConfig, run_id: str) -> str:
    """Keep a run's settings in the store, once its input has been accepted.

    Returns:
        URL of the run's folder, `<store>/runs/<run id>`.
    """
    url = storage.join(storage.absolute(config.store), "runs", run_id)
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    storage.write_bytes(storage.join(url, "config.yaml"), text.encode())
    return url


def finished_stage(request: WorkRequest, record: type[Record]) -> Record | None:
    """What this very stage answered when an earlier attempt of the run came to its end."""
    url = _url(request)
    if not storage.exists(url):
        return None
    finished = _Finished.model_validate_json(storage.read_bytes(url))
    if finished.asked != _hash(request):
        return None
    return record.model_validate_json(finished.answer)


def finish_stage(request: WorkRequest, answer: BaseModel) -> None:
    """Note that a stage is done, so that another attempt of the run need not repeat it."""
    finished = _Finished(asked=_hash(request), answer=answer.model_dump_json())
    storage.write_bytes(_url(request), finished.model_dump_json().encode())


def _url(request: WorkRequest) -> str:
    return storage.join(request.run_url, "stages", f"{request.stage}.json")


def _hash(request: WorkRequest) -> str:
    return hashlib.sha256(request.model_dump_json().encode()).hexdigest()
