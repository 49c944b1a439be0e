"""How a data set stores the target of a photo, by the kind of target."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Literal

from pets_core.errors import PetsError, did_you_mean

__all__ = ["BUILT_IN", "DEFAULT_TARGET", "TargetSpec", "load_object", "target_spec"]


@dataclass(frozen=True)
class TargetSpec:
    """How a data set stores the target of a photo.

    Attributes:
        storage: label: one of a vocabulary. labels: any number of a vocabulary. numbers: a list of
            numbers.
        geometry: Whether the numbers are coordinates on the photo, which transforms move: of
            points, x and y in turn, or of a box, xmin, ymin, xmax and ymax.
    """

    storage: Literal["label", "labels", "numbers"]
    geometry: Literal["points", "box"] | None = None

    @property
    def is_label(self) -> bool:
        """Whether a photo has one label."""
        return self.storage == "label"

    @property
    def is_labels(self) -> bool:
        """Whether a photo has any number of labels."""
        return self.storage == "labels"

    @property
    def is_numbers(self) -> bool:
        """Whether a photo has numbers."""
        return self.storage == "numbers"

    @property
    def noun(self) -> str:
        """What a label is called."""
        return "tag" if self.is_labels else "class"

    @property
    def plural(self) -> str:
        """The same of several."""
        return "tags" if self.is_labels else "classes"


DEFAULT_TARGET = "class"
BUILT_IN = {
    "class": TargetSpec("label"),
    "tags": TargetSpec("labels"),
    "numbers": TargetSpec("numbers"),
    "points": TargetSpec("numbers", "points"),
    "box": TargetSpec("numbers", "box"),
}


def target_spec(name: str) -> TargetSpec:
    """Return how targets of a kind are stored.

    Args:
        name: Of a built-in kind, or "module:object" of one that a module defines
            (docs/new-target.md).

    Raises:
        PetsError: There is no such kind.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    spec = getattr(load_object(name), "spec", None)
    if not isinstance(spec, TargetSpec):
        raise PetsError(f"targets = {name}: the object there is no kind of target")
    return spec


def load_object(name: str) -> object:
    """Return the object that "module:object" names.

    Raises:
        PetsError: There is no such module or object.
    """
    if not re.fullmatch(r"[\w.]+:[\w.]+", name):
        raise PetsError(
            f"targets = {name}: no such kind of target; set {', '.join(BUILT_IN)}, or "
            f"module:object.{did_you_mean(name, BUILT_IN)}"
        )
    if name.split(":")[0].split(".")[0] in sys.stdlib_module_names:
        raise PetsError(f"targets = {name}: a module of Python itself is no kind of target")
    try:
        return resolve_name(name)
    except (Exception, SystemExit) as error:
        raise PetsError(
            f"targets = {name}: {error}. Install the module, or put its folder on PYTHONPATH, on "
            "every machine that works on a run"
        ) from error
