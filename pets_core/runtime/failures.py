"""Failures of ranks: recorded as files by the ranks, raised as exceptions by the caller."""

from __future__ import annotations

import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from pets_core import storage
from pets_core.errors import PetsError, is_retryable

__all__ = [
    "RankFailure",
    "WorkerError",
    "read_failures",
    "to_exception",
    "to_failure",
    "write_failure",
]


class WorkerError(RuntimeError):
    """A rank failed for another reason than bad input or settings; contains its traceback.

    Attributes:
        is_retryable: Whether another attempt may succeed.
    """

    def __init__(self, message: str, *, is_retryable: bool = True) -> None:
        super().__init__(message)
        self.is_retryable = is_retryable


class RankFailure(BaseModel):
    """The error that ended one rank.

    Attributes:
        rank: Global rank over all machines; None for the launcher.
        message: Description of the error.
        traceback: Stack trace of the error.
        kind: refused: bad input or settings; the message names the remedy. stalled: no progress
            within the timeout. cut off: the connection to another rank was lost. alone: the other
            machines did not join. failed: any other error.
        is_retryable: Whether another attempt may succeed.
        at: Time of the failure, seconds since 1970.
    """

    model_config = ConfigDict(frozen=True)

    rank: int | None = None
    message: str
    traceback: str = ""
    kind: Literal["refused", "failed", "stalled", "cut off", "alone"]
    is_retryable: bool = True
    at: float = Field(default_factory=time.time)

    @property
    def root_cause_key(self) -> tuple[bool, bool, float]:
        """Sort key that puts the most likely root cause first.

        A loss that is not finite makes all ranks fail. When one rank ends, the others lose their
        connection to it.
        """
        return "the loss is" not in self.message, self.kind == "cut off", self.at


def write_failure(failure: RankFailure, folder: str | Path, name: str) -> None:
    """Write a failure to the request's folder, one file per name."""
    url = storage.join(str(folder), f"failure-{name}.json")
    storage.write_bytes(url, failure.model_dump_json().encode(), "TMPDIR")


def read_failures(folder: str | Path) -> list[RankFailure]:
    """Return the failures in a folder, the most likely root cause first."""
    names = [name for name in storage.list_folder(str(folder)) if name.startswith("failure-")]
    files = [storage.read_bytes(storage.join(str(folder), name)) for name in names]
    failures = (RankFailure.model_validate_json(data) for data in files)
    return sorted(failures, key=lambda failure: failure.root_cause_key)


def to_exception(failures: Sequence[RankFailure]) -> Exception:
    """Return a PetsError if the input was refused, else a WorkerError for the first failure.

    The error of a stall has the stack traces of all stalled ranks.

    Args:
        failures: At least one, the most likely root cause first, as `read_failures` returns them.
    """
    failure = failures[0]
    if failure.kind == "refused":
        return PetsError(failure.message)
    if failure.kind == "stalled":
        stalled = (f for f in failures if f.kind == "stalled")
        stacks = "\n".join(f"rank {f.rank}:\n{f.traceback}" for f in stalled)
        return WorkerError(f"{failure.message}. Stack traces of the ranks:\n{stacks}")
    text = failure.message
    if failure.rank is not None:
        text = f"rank {failure.rank} failed: {text}"
    if failure.traceback:
        text = f"{text}\n{failure.traceback}"
    return WorkerError(text, is_retryable=failure.is_retryable)


def to_failure(error: Exception, rank: int | None, *, is_cut_off: bool = False) -> RankFailure:
    """Describe the exception that ended a rank; call it inside the `except` block.

    Args:
        error: The exception.
        rank: Global rank; None for the launcher.
        is_cut_off: Whether the error only reports a lost connection to another rank.
    """
    is_refused = isinstance(error, PetsError)
    return RankFailure(
        rank=rank,
        message=str(error) if is_refused else repr(error),
        traceback=traceback.format_exc(),
        kind="refused" if is_refused else "cut off" if is_cut_off else "failed",
        is_retryable=is_cut_off or is_retryable(error),
    )
