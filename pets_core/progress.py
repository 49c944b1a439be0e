"""How far a stage has come, as told by ranks and shown by whoever asks."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import BaseModel, ConfigDict

__all__ = ["OnProgress", "Progress", "ignore_progress"]


class Progress(BaseModel):
    """`done` of `total` `unit`s of one `stage`; `detail` is a short line for people."""

    model_config = ConfigDict(frozen=True)

    stage: str
    done: int
    total: int
    unit: str
    detail: str = ""


OnProgress = Callable[[Progress], None]


def ignore_progress(_: Progress) -> None:
    """Show nothing."""
