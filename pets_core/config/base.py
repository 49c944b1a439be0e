"""Base class and types of all settings."""

from __future__ import annotations

from typing import Annotated, Any, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

__all__ = [
    "NAME_PATTERN",
    "LocalFolder",
    "Settings",
]

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
"""Names of data sets and aliases; each is a folder in the store."""


class Settings(BaseModel):
    """Frozen settings that reject unknown keys, so that a typo fails before training."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _reject_bool_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Reject booleans for numbers: YAML reads yes and on as true, pydantic reads true as 1."""
        assert info.field_name is not None
        if isinstance(value, bool) and {int, float} & _types(cls.model_fields[info.field_name]):
            raise ValueError("expected a number, not true or false")
        return value


def _types(field: FieldInfo) -> set[Any]:
    """Return the types that a field's annotation allows, without bounds."""
    return {
        get_args(option)[0] if get_origin(option) is Annotated else option
        for option in (get_args(field.annotation) or [field.annotation])
    }


def _local_folder(value: str) -> str:
    if "://" in value or value.startswith("file:"):
        raise ValueError(f"{value} is a URL; set the path of a local folder")
    return value


LocalFolder = Annotated[str, AfterValidator(_local_folder)]
