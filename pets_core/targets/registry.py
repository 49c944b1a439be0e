"""Kinds of targets by name."""

from __future__ import annotations

from importlib import import_module

from pets_core.errors import PetsError
from pets_core.records.target_spec import load_object
from pets_core.targets.base import Target

__all__ = ["get_target"]

_BUILT_IN = {
    "class": "classes.target:CLASSES",
    "tags": "tags.target:TAGS",
    "numbers": "regression.target:NUMBERS",
    "points": "coordinates.target:POINTS",
    "box": "coordinates.target:BOX",
}


def get_target(name: str) -> Target:
    """Return a kind of target by its name; its module is imported on first use.

    Args:
        name: Of a built-in kind, or "module:object" of one that a module defines
            (docs/new-target.md).

    Raises:
        PetsError: There is no such kind, or the object has another name.
    """
    if name in _BUILT_IN:
        module, _, attribute = _BUILT_IN[name].partition(":")
        found = getattr(import_module(f"pets_core.targets.{module}"), attribute)
    else:
        found = load_object(name)
    if not isinstance(found, Target):
        raise PetsError(f"targets = {name}: the object there is no kind of target")
    if found.name != name:
        raise PetsError(
            f"targets = {name}: the kind of target there is named {found.name!r}, by which stored "
            f"data would be taken for another kind: set its name to {name!r}"
        )
    return found
