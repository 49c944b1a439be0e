"""Errors for a value given to a group of settings, such as `--model resnet18`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError

from pets.cli.commands import GROUP_EXAMPLES
from pets_core.config.pipeline import PipelineConfig
from pets_core.ratings.config import RatingsConfig

__all__ = [
    "as_flag",
    "as_setting",
    "as_variable",
    "choices",
    "describe_group",
    "find_error",
    "groups",
]

_NUM_EXAMPLES = 3

Form = Callable[[str, str, str | None], str]
"""Formats group, field and value (None: omit it) as the user writes them."""


def as_flag(group: str, field: str, value: str | None) -> str:
    """Format a setting as a flag."""
    return f"--{group}.{field}" + (f" {shlex.quote(value)}" if value else "")


def as_variable(group: str, field: str, value: str | None) -> str:
    """Format a setting as an environment variable."""
    name = f"PETS_{group}__{field}".upper()
    return name + (f"={shlex.quote(value)}" if value else "")


def as_setting(group: str, field: str, value: str | None) -> str:
    """Format a setting by its dotted name, for messages about files."""
    return f"{group}.{field}" + (f" = {value}" if value else "")


def groups(kind: type[PipelineConfig] | type[RatingsConfig]) -> dict[str, type[BaseModel]]:
    """Return the groups of settings by name."""
    return {
        name: field.annotation
        for name, field in kind.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    }


def choices(kind: type[PipelineConfig] | type[RatingsConfig]) -> dict[str, list[str]]:
    """Return the names that a setting may have, by the setting's dotted name."""
    found = {
        f"{name}.{field}": sorted(c for c in _choices(info.annotation) if isinstance(c, str))
        for name, group in groups(kind).items()
        for field, info in group.model_fields.items()
    }
    return {name: values for name, values in found.items() if values}


def find_error(name: str, group: type[BaseModel], text: str, form: Form) -> str | None:
    """Check the text of a flag or variable for a whole group, which must be a JSON object.

    Returns:
        The error and the setting that was probably meant; None for a JSON object.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        if text.lstrip().startswith("{"):
            return f"not a JSON object: {error}"
        value = text
    if isinstance(value, dict):
        return None
    return describe_group(name, group, value if isinstance(value, list) else text, form)


def describe_group(name: str, group: type[BaseModel], value: Any, form: Form) -> str:
    """Return the error for a value given to a whole group, with a suggested field.

    Args:
        name: Name of the group.
        group: Class of the group.
        value: Value given instead of fields.
        form: Formats the suggestion.
    """
    summary = f"{name} is a group of settings"
    field, is_named, rest = str(value).partition("=")
    if isinstance(value, str) and field in group.model_fields:
        return f"{summary}. Did you mean {form(name, field, rest if is_named else None)}?"
    meant = _find_field(name, group, value)
    if meant is not None:
        return f"{summary}. Did you mean {form(name, meant, str(value))}?"
    examples = [form(name, each, None) for each in list(group.model_fields)[:_NUM_EXAMPLES]]
    return f"{summary}. Set its fields, such as {', '.join(examples)}"


def _find_field(name: str, group: type[BaseModel], value: Any) -> str | None:
    """Return the field that has the value as a choice, else the main field if it accepts it."""
    if not isinstance(value, (str, int, float)) or value in ("", "null"):
        return None
    for field, info in group.model_fields.items():
        if isinstance(value, str) and value in _choices(info.annotation):
            return field
    main = next(iter(GROUP_EXAMPLES.get(name, ())), None)
    return main if main is not None and _accepts(group, main, value) else None


def _choices(annotation: Any) -> set[Any]:
    if get_origin(annotation) is Literal:
        return set(get_args(annotation))
    return {choice for option in get_args(annotation) for choice in _choices(option)}


def _accepts(group: type[BaseModel], field: str, value: Any) -> bool:
    try:
        group.model_validate({field: value})
    except ValidationError as error:
        # Other errors concern combinations with other fields.
        return all(each["loc"][:1] != (field,) for each in error.errors())
    return True
