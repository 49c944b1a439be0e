"""How far a stage has come, as told by ranks and shown by whoever asks."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import BaseModel, ConfigDict

__all__ = ["OnProgress", "Progress", "ignore_progress"]


class Progress(BaseModel):
    """`done` of `total` `unit`s of one `stage`; `detail` is a short line for people.

    `photos_per_second` is None where a stage does not know; `gpu_memory_bytes` is the most that
    torch had of rank 0's GPU.
    """

    model_config = ConfigDict(frozen=True)

    stage: str
    done: int
    total: int
    unit: str
    detail: str = ""
    photos_per_second: float | None = None
    gpu_memory_bytes: int = 0


OnProgress = Callable[[Progress], None]


def ignore_progress(_: Progress) -> None:
    """Show nothing."""
