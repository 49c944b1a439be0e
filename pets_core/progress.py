"""Progress of a stage, reported by ranks and passed to callbacks."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import BaseModel, ConfigDict

__all__ = ["OnProgress", "Progress", "ignore_progress", "speed_text"]


class Progress(BaseModel):
    """Progress report of one stage.

    Attributes:
        stage: Name of the stage.
        done: Units done so far.
        total: Units in all.
        unit: Name of the unit, such as steps or epochs.
        detail: Short text to display.
        photos_per_second: Throughput; None if the stage does not measure it.
        gpu_memory_bytes: Peak memory that torch allocated on the GPU of rank 0.
    """

    model_config = ConfigDict(frozen=True)

    stage: str
    done: int
    total: int
    unit: str
    detail: str = ""
    photos_per_second: float | None = None
    gpu_memory_bytes: int = 0


def speed_text(speed: float, unit: str) -> str:
    """Return a speed with its unit, such as "120 photos/s" or "0.4 photos/s"; empty if it is 0."""
    if not speed > 0:
        return ""
    return f"{speed:,.0f} {unit}" if speed >= 10 else f"{speed:.2g} {unit}"


OnProgress = Callable[[Progress], None]


def ignore_progress(_: Progress) -> None:
    """Ignore the report."""
