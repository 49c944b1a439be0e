"""Kinds of targets by name."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from pets_core.errors import PetsError, did_you_mean

if TYPE_CHECKING:
    from pets_core.targets.base import Target

__all__ = ["get_target", "register_target", "target_names"]

_KINDS: dict[str, str] = {
    "class": "pets_core.targets.classes.target:CLASSES",
    "tags": "pets_core.targets.tags.target:TAGS",
    "numbers": "pets_core.targets.regression.target:NUMBERS",
    "points": "pets_core.targets.coordinates.target:POINTS",
    "box": "pets_core.targets.coordinates.target:BOX",
}


def target_names() -> tuple[str, ...]:
    """Return the names of all kinds."""
    return tuple(_KINDS)


def register_target(name: str, place: str) -> None:
    """Add a kind of target.

    Args:
        name: Of the kind.
        place: Where its object is, as "module:object"; imported on first use.

    Raises:
        PetsError: Another kind has this name.
    """
    if _KINDS.setdefault(name, place) != place:
        raise PetsError(
            f"targets = {name} is registered twice, at {_KINDS[name]} and at {place}: rename one"
        )


def get_target(name: str) -> Target:
    """Return a kind of target by its name.

    Raises:
        PetsError: There is none of that name.
    """
    if name not in _KINDS:
        raise PetsError(
            f"targets = {name}: no such kind of target; known are {', '.join(_KINDS)}."
            f"{did_you_mean(name, _KINDS)}"
        )
    module, _, attribute = _KINDS[name].partition(":")
    target: Target = getattr(import_module(module), attribute)
    return target
