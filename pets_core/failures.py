"""What went wrong in a rank, from the rank that wrote it down to whoever asked for the work."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from pets_core import storage
from pets_core.errors import PetsError

__all__ = ["RankFailure", "WorkerError", "read_failures", "the_error", "write_failure"]


class WorkerError(RuntimeError):
    """A rank failed for a reason that is no user's fault; holds that rank's own traceback."""


class RankFailure(BaseModel):
    """The error of one rank, as it wrote it down before it ended.

    Attributes:
        rank: Among those of all machines; None: the launcher, of ranks that wrote nothing.
        message: What is wrong.
        traceback: Where.
        kind: refused: the user can mend it, and the message says how. stalled: it hung. cut off:
            another rank went away. alone: the other machines did not come. failed: anything else.
        at: When, seconds since 1970.
    """

    model_config = ConfigDict(frozen=True)

    rank: int | None = None
    message: str
    traceback: str = ""
    kind: Literal["refused", "failed", "stalled", "cut off", "alone"]
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
    storage.write_bytes(url, failure.model_dump_json().encode())


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
    if failure.kind == "alone" or failure.rank is None:
        return WorkerError(failure.message)
    if failure.kind == "stalled":
        told = (f"rank {f.rank}:\n{f.traceback}" for f in failures if f.kind == "stalled")
        stacks = "\n".join(told)
        return WorkerError(f"{failure.message}; the ranks stood at\n{stacks}")
    return WorkerError(f"rank {failure.rank} failed: {failure.message}\n{failure.traceback}")
