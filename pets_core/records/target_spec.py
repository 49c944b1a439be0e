"""Storage of targets in a data set, by kind of target."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Literal

from pets_core.errors import PetsError, did_you_mean

__all__ = ["BUILT_IN_SPECS", "DEFAULT_TARGET", "TargetSpec", "load_object", "target_spec"]


@dataclass(frozen=True)
class TargetSpec:
    """Storage format of a photo's target.

    Attributes:
        storage: label: one label of a vocabulary. labels: any number of labels of a vocabulary.
            numbers: a list of numbers.
        geometry: Coordinates on the photo, which transforms move. points: x and y of each point.
            box: xmin, ymin, xmax, ymax. None: the numbers are not coordinates.
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
        """Noun for one label: tag or class."""
        return "tag" if self.is_labels else "class"

    @property
    def plural(self) -> str:
        """Plural of `noun`."""
        return "tags" if self.is_labels else "classes"


DEFAULT_TARGET = "class"
BUILT_IN_SPECS = {
    "class": TargetSpec("label"),
    "tags": TargetSpec("labels"),
    "numbers": TargetSpec("numbers"),
    "points": TargetSpec("numbers", "points"),
    "box": TargetSpec("numbers", "box"),
}


def target_spec(name: str) -> TargetSpec:
    """Return the storage format of a kind of target.

    Args:
        name: Name of a built-in kind, or "module:object" of a custom kind (docs/new-target.md).

    Raises:
        PetsError: The kind does not exist.
    """
    if name in BUILT_IN_SPECS:
        return BUILT_IN_SPECS[name]
    spec = getattr(load_object(name), "spec", None)
    if not isinstance(spec, TargetSpec):
        raise PetsError(
            f"targets = {name}: the object there is not a kind of target. See docs/new-target.md"
        )
    return spec


def load_object(name: str) -> object:
    """Import the object named by "module:object".

    Raises:
        PetsError: The module or object does not exist.
    """
    if not re.fullmatch(r"[\w.]+:[\w.]+", name):
        raise PetsError(
            f"targets = {name}: no such kind of target; set {', '.join(BUILT_IN_SPECS)}, or "
            f"module:object.{did_you_mean(name, BUILT_IN_SPECS)}"
        )
    if name.split(":")[0].split(".")[0] in sys.stdlib_module_names:
        raise PetsError(f"targets = {name}: is in Python's standard library; set your own module")
    try:
        return resolve_name(name)
    except (Exception, SystemExit) as error:
        raise PetsError(
            f"targets = {name}: {error}. Install the module, or add its folder to PYTHONPATH, on "
            "every machine of the run"
        ) from error
