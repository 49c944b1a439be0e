"""Checkpoints: what a training can go on from, on any store, written while it goes on."""

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
from pets_core.records.base import Record
from pets_core.records.training import EpochMetrics
from pets_core.training.history import read_steps, steps_table
from pets_core.training.host_copy import safetensors_chunks

__all__ = ["Checkpoints", "Place", "Snapshot"]

_COMMIT = "checkpoint.json"
_TENSORS, _STEPS = "tensors.safetensors", "steps.parquet"


class Place(Record):
    """Where a training is, between two optimizer steps.

    Attributes:
        epochs: That are over.
        num_rows: Steps of the epoch under way.
        seconds: That these took, in all attempts.
        phase: Number of the phase under way.
        first_epoch: Of that phase, among all.
        best_loss: Of the best weights, if there are any.
        epochs_since_best: How many epochs ago these were.
        scaler: State of the gradient scaler, if there is one.
    """

    epochs: tuple[EpochMetrics, ...] = ()
    num_rows: int = 0
    seconds: float = 0.0
    phase: int = 0
    first_epoch: int = 0
    best_loss: float | None = None
    epochs_since_best: int = 0
    scaler: dict[str, float] | None = None


@dataclass(frozen=True)
class Snapshot:
    """All that a training goes on from, on the host.

    Attributes:
        step: Optimizer steps taken.
        tensors: By name.
        steps: The history's rows.
        place: Where the training is.
        ready: Event after which the tensors have their values; None: they have them.
    """

    step: int
    tensors: dict[str, Tensor]
    steps: list[dict[str, Any]]
    place: Place
    ready: torch.Event | None = None


class _Commit(Record):
    """The file whose presence makes a checkpoint; `files` are SHA-256 sums by name."""

    format_version: Literal[1] = 1
    step: int
    identity: dict[str, Any]
    place: Place
    files: dict[str, str]


class Checkpoints:
    """The checkpoints of one training: `<url>/step-<number>/`.

    A checkpoint is safetensors, Parquet and JSON. Its files are written first, `checkpoint.json`
    with their checksums last; that one appears whole or not at all, and is the commit.

    Args:
        url: Folder, on any store.
        identity: What a training must have in common with a checkpoint to go on from it.
        keep: How many to keep.
        warn: Told of what went wrong without stopping the training, and from where it goes on.
    """

    def __init__(
        self,
        url: str,
        identity: dict[str, Any],
        *,
        keep: int = 2,
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._url, self._identity, self._keep, self._warn = url, identity, keep, warn
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._damaged: set[str] = set()

    def save(self, snapshot: Snapshot, *, wait: bool = False) -> None:
        """Write a snapshot while training goes on; it takes the place of one that still waits.

        A store that fails is told of, and the training goes on; older checkpoints stay.

        Args:
            snapshot: Nobody may change its tensors any more.
            wait: Return when it is there.
        """
        if self._writing:
            self._writing.cancel()
        self._writing = self._writer.submit(self._try_to_write, snapshot)
        if wait:
            self._writing.result()

    @property
    def busy(self) -> bool:
        """Whether one is being written, or waits for that."""
        return self._writing is not None and not self._writing.done()

    def wait(self) -> None:
        """Return when all is written."""
        if self._writing:
            self._writing.result()

    def load(self) -> Snapshot | None:
        """The newest checkpoint that is whole, or None; a damaged one is told of and passed over.

        Raises:
            PetsError: The newest is of another training: its settings or its data set differ.
            OSError: The store cannot be read now, which says nothing of what lies there.
        """
        for folder in sorted(self._committed(), reverse=True):
            url = storage.join(self._url, folder)
            try:
                commit = _Commit.model_validate_json(_read(storage.join(url, _COMMIT)))
                files = {
                    name: _checked(storage.join(url, name), sha256)
                    for name, sha256 in commit.files.items()
                }
                tensors = safetensors.torch.load(files[_TENSORS])
            except (_Damaged, pydantic.ValidationError, safetensors.SafetensorError) as error:
                reason = str(error).splitlines()[0]
                self._warn(f"the checkpoint {url} is damaged and passed over: {reason}")
                self._damaged.add(folder)
                continue
            self._refuse_another(url, commit.identity)
            self._warn(f"training goes on from {url}")
            return Snapshot(commit.step, tensors, read_steps(files[_STEPS]), commit.place)
        return None

    def _refuse_another(self, url: str, identity: dict[str, Any]) -> None:
        # As JSON has it, where a tuple is a list.
        own = json.loads(json.dumps(self._identity))
        differing = [
            f"{key} ({identity.get(key)!r} there, {own.get(key)!r} here)"
            for key in sorted(own.keys() | identity.keys())
            if own.get(key) != identity.get(key)
        ]
        if differing:
            raise PetsError(
                f"the checkpoint {url} is of another training: {', '.join(differing)}. Set these "
                "back to go on from it, or start a new run"
            )

    def _committed(self) -> list[str]:
        """Names of the checkpoints."""
        return [
            name
            for name in storage.list_folder(self._url)
            if name.startswith("step-") and storage.exists(storage.join(self._url, name, _COMMIT))
        ]

    def _try_to_write(self, snapshot: Snapshot) -> None:
        try:
            self._write(snapshot)
        except Exception as error:  # noqa: BLE001 - whatever the store raises, training goes on
            kind = type(error).__name__
            self._warn(
                f"no checkpoint of step {snapshot.step} could be written to {self._url} "
                f"({kind}: {error}); training goes on, and the ones before stay"
            )
            return
        try:
            self._prune(snapshot.step)
        except Exception as error:  # noqa: BLE001 - as above; the next one tries again
            self._warn(f"old checkpoints in {self._url} could not be removed: {error}")

    def _write(self, snapshot: Snapshot) -> None:
        url = storage.join(self._url, _name(snapshot.step))
        if snapshot.ready:
            snapshot.ready.synchronize()
        files = {
            _TENSORS: safetensors_chunks(snapshot.tensors),
            _STEPS: iter([steps_table(snapshot.steps)]),
        }
        commit = _Commit(
            step=snapshot.step,
            identity=self._identity,
            place=snapshot.place,
            files={name: _write(storage.join(url, name), data) for name, data in files.items()},
        )
        storage.write_bytes(storage.join(url, _COMMIT), commit.model_dump_json().encode())
        self._damaged.discard(url.rsplit("/", 1)[-1])

    def _prune(self, step: int) -> None:
        """Remove what is not among the newest sound checkpoints, or was begun before and left."""
        committed = set(self._committed())
        kept = sorted(committed - self._damaged)[-self._keep :]
        for name in sorted(storage.list_folder(self._url)):
            left = name.startswith("step-") and name < _name(step)
            if name not in kept and (left or name in committed):
                # The commit first: what is left of one that is half removed is no checkpoint.
                storage.remove(storage.join(self._url, name, _COMMIT))
                storage.remove(storage.join(self._url, name))


def _name(step: int) -> str:
    """Of a checkpoint's folder; their order is that of their steps."""
    return f"step-{step:09}"


class _Damaged(Exception):  # noqa: N818 - never leaves this module
    """A file of a checkpoint is gone, or not what was written."""


def _write(url: str, chunks: Iterator[bytes | memoryview]) -> str:
    """Write a file in chunks; return its SHA-256 sum. Neither holds Python's lock for long."""
    digest = hashlib.sha256()
    with storage.writing(url, "store") as file:
        for chunk in chunks:
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()


def _read(url: str) -> bytes:
    if not storage.exists(url):
        raise _Damaged(f"{url} is gone")
    try:
        return storage.read_bytes(url)
    except PetsError as error:
        # Not for the user to mend: another attempt may find the store well.
        raise OSError(str(error)) from error


def _checked(url: str, sha256: str) -> bytes:
    data = _read(url)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise _Damaged(f"{url} fails its checksum")
    return data
