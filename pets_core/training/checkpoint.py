"""Checkpoints to resume a training from, written to any store in the background."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import pydantic
import safetensors.torch
import torch
from torch import Tensor

from pets_core import storage
from pets_core.errors import PetsError
from pets_core.records.base import Record, renamed
from pets_core.records.training import EpochMetrics
from pets_core.training.history import read_steps, steps_table
from pets_core.training.host_copy import safetensors_chunks

__all__ = ["Checkpoints", "Snapshot", "TrainingPosition"]

_COMMIT = "checkpoint.json"
_TENSORS, _STEPS = "tensors.safetensors", "steps.parquet"


class TrainingPosition(Record):
    """Progress of a training between two optimizer steps.

    Attributes:
        epochs: Metrics of the finished epochs.
        num_epoch_steps: Steps taken in the current epoch.
        seconds: Duration of these steps, over all attempts.
        phase: Number of the current phase.
        first_epoch: Number of that phase's first epoch, counted over all phases.
        best_loss: Validation loss of the best weights, if there are any.
        epochs_without_improvement: Epochs without a lower validation loss.
        scaler: State of the gradient scaler, if there is one.
    """

    epochs: tuple[EpochMetrics, ...] = ()
    num_epoch_steps: int = renamed("num_epoch_steps", "num_rows", 0)
    seconds: float = 0.0
    phase: int = 0
    first_epoch: int = 0
    best_loss: float | None = None
    epochs_without_improvement: int = renamed("epochs_without_improvement", "epochs_since_best", 0)
    scaler: dict[str, float] | None = None


@dataclass(frozen=True)
class Snapshot:
    """State of a training on the host, from which it can be resumed.

    Attributes:
        step: Number of optimizer steps taken.
        tensors: Tensors by name.
        steps: Rows of the history.
        position: Progress of the training.
        ready: Event after which the copied tensors are valid; None: they are valid now.
    """

    step: int
    tensors: dict[str, Tensor]
    steps: list[dict[str, Any]]
    position: TrainingPosition
    ready: torch.Event | None = None


class _Commit(Record):
    """Content of checkpoint.json, which commits a checkpoint.

    Attributes:
        format_version: Version of this file's format.
        step: Number of optimizer steps taken.
        resume_key: Settings and data that a resumed training must share.
        position: Progress of the training.
        files: SHA-256 checksums by file name.
    """

    format_version: Literal[1] = 1
    step: int
    resume_key: dict[str, Any] = renamed("resume_key", "identity")
    position: TrainingPosition = renamed("position", "place")
    files: dict[str, str]


class Checkpoints:
    """The checkpoints of one training: `<url>/step-<number>/`.

    A checkpoint is safetensors, Parquet and JSON. `checkpoint.json`, with the checksums of the
    other files, is written last and atomically: it commits the checkpoint.

    Args:
        url: Folder, on any store.
        resume_key: Settings and data that must match for a training to be resumed.
        keep: Number of checkpoints to keep.
        warn: Called with a message when the store fails, when a checkpoint is damaged, and when
            training resumes.
    """

    def __init__(
        self,
        url: str,
        resume_key: dict[str, Any],
        *,
        keep: int = 2,
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._url, self._resume_key, self._keep, self._warn = url, resume_key, keep, warn
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._damaged: set[str] = set()

    def save(self, snapshot: Snapshot, *, wait: bool = False) -> None:
        """Write a snapshot in the background, in place of a queued one that has not started.

        If the store fails, `warn` is called, training continues, and older checkpoints stay.

        Args:
            snapshot: Its tensors must not change any more.
            wait: Return only when the snapshot is written.
        """
        if self._writing:
            self._writing.cancel()
        self._writing = self._writer.submit(self._try_to_write, snapshot)
        if wait:
            self._writing.result()

    @property
    def is_writing(self) -> bool:
        """Whether a checkpoint is being written or queued."""
        return self._writing is not None and not self._writing.done()

    def wait(self) -> None:
        """Wait until all checkpoints are written."""
        if self._writing:
            self._writing.result()

    def load(self) -> Snapshot | None:
        """Return the newest valid checkpoint, or None; damaged ones are skipped with a warning.

        Raises:
            PetsError: The newest one belongs to a training with other settings or data.
            OSError: The store cannot be read at the moment; the checkpoint may be valid.
        """
        for folder in sorted(self._list_committed(), reverse=True):
            url = storage.join(self._url, folder)
            try:
                commit = _Commit.model_validate_json(_read(storage.join(url, _COMMIT)))
                files = {
                    name: _read_verified(storage.join(url, name), sha256)
                    for name, sha256 in commit.files.items()
                }
                tensors = safetensors.torch.load(files[_TENSORS])
            except (_DamagedError, pydantic.ValidationError, safetensors.SafetensorError) as error:
                reason = str(error).splitlines()[0]
                self._warn(f"Skipping the checkpoint {url}, which is damaged: {reason}")
                self._damaged.add(folder)
                continue
            self._check_resume_key(url, commit.resume_key)
            self._warn(f"Resuming training from {url}")
            return Snapshot(commit.step, tensors, read_steps(files[_STEPS]), commit.position)
        return None

    def _check_resume_key(self, url: str, stored: dict[str, Any]) -> None:
        # JSON turns tuples into lists.
        own = json.loads(json.dumps(self._resume_key))
        differing = [
            f"{key} (checkpoint: {stored.get(key)!r}, this run: {own.get(key)!r})"
            for key in sorted(own.keys() | stored.keys())
            if own.get(key) != stored.get(key)
        ]
        if differing:
            raise PetsError(
                f"the checkpoint {url} is of another training: {', '.join(differing)}. Set the "
                "values of the checkpoint to resume from it, or start a new run"
            )

    def _list_committed(self) -> list[str]:
        """Return the folder names of committed checkpoints."""
        return [
            name
            for name in storage.list_folder(self._url)
            if name.startswith("step-") and storage.exists(storage.join(self._url, name, _COMMIT))
        ]

    def _try_to_write(self, snapshot: Snapshot) -> None:
        try:
            self._write(snapshot)
        except Exception as error:  # noqa: BLE001 - no error of the store stops the training
            kind = type(error).__name__
            self._warn(
                f"Could not write the checkpoint of step {snapshot.step} to {self._url} "
                f"({kind}: {error}); training continues, and older checkpoints are kept"
            )
            return
        try:
            self._prune(snapshot.step)
        except Exception as error:  # noqa: BLE001 - as above; the next checkpoint retries
            self._warn(f"Could not remove old checkpoints in {self._url}: {error}")

    def _write(self, snapshot: Snapshot) -> None:
        url = storage.join(self._url, _folder_name(snapshot.step))
        if snapshot.ready:
            snapshot.ready.synchronize()
        files = {
            _TENSORS: safetensors_chunks(snapshot.tensors),
            _STEPS: iter([steps_table(snapshot.steps)]),
        }
        commit = _Commit(
            step=snapshot.step,
            resume_key=self._resume_key,
            position=snapshot.position,
            files={name: _write(storage.join(url, name), data) for name, data in files.items()},
        )
        storage.write_bytes(storage.join(url, _COMMIT), commit.model_dump_json().encode())
        self._damaged.discard(url.rsplit("/", 1)[-1])

    def _prune(self, step: int) -> None:
        """Remove old and damaged checkpoints, and incomplete folders of earlier steps."""
        committed = set(self._list_committed())
        kept = sorted(committed - self._damaged)[-self._keep :]
        for name in sorted(storage.list_folder(self._url)):
            is_earlier = name.startswith("step-") and name < _folder_name(step)
            if name not in kept and (is_earlier or name in committed):
                # The commit first, so that a checkpoint removed in part is never loaded.
                storage.remove(storage.join(self._url, name, _COMMIT))
                storage.remove(storage.join(self._url, name))


def _folder_name(step: int) -> str:
    """Return a checkpoint's folder name; names sort by step."""
    return f"step-{step:09}"


class _DamagedError(Exception):
    """A file of a checkpoint is missing, or its checksum differs."""


def _write(url: str, chunks: Iterator[bytes | memoryview]) -> str:
    """Write a file in chunks, which hold the GIL only briefly; return its SHA-256 checksum."""
    digest = hashlib.sha256()
    with storage.writing(url, "store") as file:
        for chunk in chunks:
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()


def _read(url: str) -> bytes:
    if not storage.exists(url):
        raise _DamagedError(f"{url} is missing")
    try:
        return storage.read_bytes(url)
    except PetsError as error:
        # Not a user error: the store may be available at the next attempt.
        raise OSError(str(error)) from error


def _read_verified(url: str, sha256: str) -> bytes:
    data = _read(url)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise _DamagedError(f"{url} fails its checksum")
    return data
