"""What went wrong in a rank, from the rank that wrote it down to whoever asked for the work."""

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
    "the_error",
    "to_failure",
    "write_failure",
]


class WorkerError(RuntimeError):
    """A rank failed for a reason that is no user's fault; holds that rank's own traceback.

    Attributes:
        is_retryable: Whether another attempt may succeed.
    """

    def __init__(self, message: str, *, is_retryable: bool = True) -> None:
        super().__init__(message)
        self.is_retryable = is_retryable


class RankFailure(BaseModel):
    """The error of one rank, as it wrote it down before it ended.

    Attributes:
        rank: Among those of all machines; None: the launcher, of ranks that wrote nothing.
        message: What is wrong.
        traceback: Where.
        kind: refused: the user can mend it, and the message says how. stalled: it hung. cut off:
            another rank went away. alone: the other machines did not come. failed: anything else.
        is_retryable: Whether another attempt may succeed.
        at: When, seconds since 1970.
    """

    model_config = ConfigDict(frozen=True)

    rank: int | None = None
    message: str
    traceback: str = ""
    kind: Literal["refused", "failed", "stalled", "cut off", "alone"]
    is_retryable: bool = True
    at: float = Field(default_factory=time.time)

    @property
    def blame(self) -> tuple[bool, bool, float]:
        """The least is to blame.

        A loss that is not finite makes all ranks fail, and the end of one cuts off the others.
        """
        return "the loss is" not in self.message, self.kind == "cut off", self.at


def write_failure(failure: RankFailure, folder: str | Path, name: str) -> None:
    """Leave a failure where whoever asked for the work looks for it; each has a name of its own."""
    url = storage.join(str(folder), f"failure-{name}.json")
    storage.write_bytes(url, failure.model_dump_json().encode(), "TMPDIR")


def read_failures(folder: str | Path) -> list[RankFailure]:
    """What the ranks left in a folder, the one to blame first."""
    names = [name for name in storage.list_folder(str(folder)) if name.startswith("failure-")]
    read = [storage.read_bytes(storage.join(str(folder), name)) for name in names]
    return sorted((RankFailure.model_validate_json(data) for data in read), key=lambda f: f.blame)


def the_error(failures: Sequence[RankFailure]) -> Exception:
    """What to raise for these, the one to blame first."""
    failure = failures[0]
    if failure.kind == "refused":
        return PetsError(failure.message)
    if failure.kind == "stalled":
        told = (f"rank {f.rank}:\n{f.traceback}" for f in failures if f.kind == "stalled")
        stacks = "\n".join(told)
        return WorkerError(f"{failure.message}; the ranks stood at\n{stacks}")
    text = failure.message
    if failure.rank is not None:
        text = f"rank {failure.rank} failed: {text}"
    if failure.traceback:
        text = f"{text}\n{failure.traceback}"
    return WorkerError(text, is_retryable=failure.is_retryable)


def to_failure(error: Exception, rank: int | None, *, is_cut_off: bool = False) -> RankFailure:
    """Describe the exception that ended a rank; to be called in its handler.

    Args:
        error: The exception.
        rank: The rank; None: the launcher.
        is_cut_off: Whether the error only says that another rank went away.
    """
    is_refused = isinstance(error, PetsError)
    return RankFailure(
        rank=rank,
        message=str(error) if is_refused else repr(error),
        traceback=traceback.format_exc(),
        kind="refused" if is_refused else "cut off" if is_cut_off else "failed",
        is_retryable=is_cut_off or is_retryable(error),
    )
