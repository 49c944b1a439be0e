"""Base class of records."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

__all__ = [
    "Record",
    "Resize",
    "Split",
    "renamed",
]

Split = Literal["train", "valid", "test"]
Resize = Literal["squish", "crop", "pad"]
"""How a photo becomes a square: stretched, its largest centred square, or with grey borders."""


class Record(BaseModel):
    """Frozen pydantic model that rejects unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def renamed(name: str, earlier: str, default: Any = ...) -> Any:
    """Return the definition of a field that stored records may hold under an earlier name.

    `model_dump_json(by_alias=True)` writes the earlier name.
    """
    return Field(default, validation_alias=AliasChoices(name, earlier), serialization_alias=earlier)
