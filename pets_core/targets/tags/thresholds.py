"""How probable a tag must be to be given: chosen by what validation photos have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pydantic
from numpy.typing import NDArray

from pets_core import storage
from pets_core.errors import PetsError
from pets_core.records.base import Record
from pets_core.targets.tags.metrics import accuracy_multi, f1_scores

__all__ = [
    "GRID",
    "THRESHOLDS",
    "Curve",
    "Thresholds",
    "choose_thresholds",
    "read_thresholds",
    "threshold_curve",
]

THRESHOLDS = "thresholds.json"
"""Name of the file beside a model's card."""
GRID = np.linspace(0.01, 0.99, 99)
"""Thresholds that are tried."""
_MIDDLE = 0.5


class Thresholds(Record):
    """A tag is given where its probability is at least its threshold.

    Attributes:
        kind: One for all tags, or one for each.
        tags: The vocabulary.
        values: Of each tag.
        num_photos: Validation photos they were chosen on; 0: one half, for want of any.
    """

    kind: Literal["shared", "per_tag"] = "shared"
    tags: tuple[str, ...]
    values: tuple[float, ...]
    num_photos: int = 0

    @classmethod
    def halves(cls, tags: Sequence[str]) -> Thresholds:
        """Whatever is likelier than not."""
        return cls(tags=tuple(tags), values=(_MIDDLE,) * len(tags))

    def given(self, probabilities: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Which tags are given, (N, C), by their probabilities, (N, C)."""
        found: NDArray[np.bool_] = probabilities >= np.array(self.values, np.float32)
        return found


class Curve(Record):
    """What each shared threshold of `GRID` comes to on the validation photos."""

    thresholds: tuple[float, ...]
    micro_f1: tuple[float, ...]
    macro_f1: tuple[float, ...]
    accuracy_multi: tuple[float, ...]


def threshold_curve(targets: NDArray[np.bool_], probabilities: NDArray[np.float32]) -> Curve:
    """Judge each shared threshold of `GRID`.

    Args:
        targets: Which tags each validation photo has, (N, C).
        probabilities: (N, C).
    """
    scores = []
    for threshold in GRID:
        given = probabilities >= np.float32(threshold)
        micro, macro, _ = f1_scores(targets, given)
        scores.append((micro, macro, accuracy_multi(targets, given)))
    micros, macros, accuracies = zip(*scores, strict=True)
    return Curve(
        thresholds=tuple(GRID.tolist()),
        micro_f1=micros,
        macro_f1=macros,
        accuracy_multi=accuracies,
    )


def choose_thresholds(
    targets: NDArray[np.bool_],
    probabilities: NDArray[np.float32],
    tags: Sequence[str],
    kind: Literal["shared", "per_tag"],
) -> Thresholds:
    """Take the thresholds of greatest F1 (Lipton and others 2014, arXiv:1402.1892).

    The shared one is that of greatest micro-averaged F1. A tag that no validation photo has gets
    the shared one. Of equals the one nearest to one half is taken.

    Args:
        targets: Which tags each validation photo has, (N, C), N at least 1.
        probabilities: (N, C).
        tags: C.
        kind: One for all tags, or one for each.
    """
    curve = threshold_curve(targets, probabilities)
    shared = _best(np.array(curve.micro_f1))
    values = np.full(len(tags), shared)
    if kind == "per_tag":
        each = np.stack([f1_scores(targets, probabilities >= np.float32(t))[2] for t in GRID])
        for tag in np.flatnonzero(targets.any(0)):
            values[tag] = _best(each[:, tag])
    return Thresholds(
        kind=kind, tags=tuple(tags), values=tuple(values.tolist()), num_photos=len(targets)
    )


def _best(scores: NDArray[np.float64]) -> float:
    equal = GRID[scores >= scores.max() - 1e-12]
    return float(equal[np.abs(equal - _MIDDLE).argmin()])


def read_thresholds(model_url: str, tags: Sequence[str]) -> Thresholds | None:
    """The thresholds beside a model; None where none were chosen.

    Args:
        model_url: The model's folder.
        tags: Its vocabulary.

    Raises:
        PetsError: The file is damaged, or of another vocabulary.
    """
    url = storage.join(storage.absolute(model_url), THRESHOLDS)
    if not storage.exists(url):
        return None
    try:
        found = Thresholds.model_validate_json(storage.read_bytes(url))
    except pydantic.ValidationError as error:
        raise PetsError(f"{url} is damaged: remove it, and evaluate the model ({error})") from error
    if found.tags != tuple(tags) or len(found.values) != len(found.tags):
        raise PetsError(f"{url}: not of the model's tags: remove it, and evaluate the model")
    return found
