"""What all settings have in common."""

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
"""What data sets and aliases may be called: each is a folder in the store."""


class Settings(BaseModel):
    """Frozen, and an unknown key is an error rather than a typo that trains for a night."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads yes and on as true, which pydantic would take for 1."""
        assert info.field_name is not None
        if isinstance(value, bool) and {int, float} & _types(cls.model_fields[info.field_name]):
            raise ValueError("expected a number, not true or false")
        return value


def _types(field: FieldInfo) -> set[Any]:
    """The types a field's annotation allows, bounds stripped."""
    options = {
        get_args(option)[0] if get_origin(option) is Annotated else option
        for option in (get_args(field.annotation) or [field.annotation])
    }
    return options


def _local_folder(value: str) -> str:
    if "://" in value or value.startswith("file:"):
        raise ValueError(f"{value} is a URL: give the path of a local folder")
    return value


LocalFolder = Annotated[str, AfterValidator(_local_folder)]
