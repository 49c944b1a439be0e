"""What all records have in common."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

__all__ = [
    "Record",
    "Split",
]

Split = Literal["train", "valid", "test"]


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
