"""What all records have in common."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

__all__ = [
    "Record",
    "Split",
    "Targets",
]

Split = Literal["train", "valid", "test"]

Targets = str
"""What is learnt of a photo: its class; any number of tags; numbers; or places on it, x and y in
turn, from -1 at its left and upper edge to 1 at the others, of points or of a box's corners."""


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
