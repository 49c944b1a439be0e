"""Lookup of kinds of targets by name."""

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
    """Return the kind of target of a name and import its module on first use.

    Args:
        name: A built-in name, or "module:object" for a custom kind (docs/new-target.md).

    Raises:
        PetsError: There is no such kind, or the object's `name` differs.
    """
    if name in _BUILT_IN:
        module, _, attribute = _BUILT_IN[name].partition(":")
        found = getattr(import_module(f"pets_core.targets.{module}"), attribute)
    else:
        found = load_object(name)
    if not isinstance(found, Target):
        raise PetsError(
            f"targets = {name}: the object there is not a kind of target. See docs/new-target.md"
        )
    if found.name != name:
        raise PetsError(
            f"targets = {name}: the Target is named {found.name!r}, and stored data would refer to "
            f"that name: set its name to {name!r}"
        )
    return found
