"""Base class of records, and their parser."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from pets_core.errors import PetsError

__all__ = [
    "Record",
    "RecordT",
    "Resize",
    "Split",
    "SuggestionName",
    "parse_record",
    "renamed",
]

Split = Literal["train", "valid", "test"]
Resize = Literal["squish", "crop", "pad"]
"""How a photo becomes a square: stretched, its largest centred square, or with grey borders."""
SuggestionName = Literal["minimum", "steepest", "valley", "slide", "limited"]
"""Rules for a learning rate from a range test; see `pets_core.records.training.Suggestions`."""


RecordT = TypeVar("RecordT", bound=BaseModel)


class Record(BaseModel):
    """Frozen pydantic model that rejects unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def parse_record(kind: type[RecordT], data: bytes | str, problem: str) -> RecordT:
    """Parse a stored record from JSON.

    Args:
        kind: Class of the record.
        data: JSON.
        problem: What to report of invalid data, such as "URL is damaged: remove it".

    Raises:
        PetsError: The data are not a record of this class: `problem`, and the reason.
    """
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise PetsError(f"{problem}: {error}") from error


def renamed(name: str, earlier: str, default: Any = ...) -> Any:
    """Return the definition of a field that stored records may hold under an earlier name.

    `model_dump_json(by_alias=True)` writes the earlier name.
    """
    return Field(default, validation_alias=AliasChoices(name, earlier), serialization_alias=earlier)
