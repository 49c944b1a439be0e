"""Decision thresholds of tags, chosen on the validation photos."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from pets_core import storage
from pets_core.errors import PetsError
from pets_core.records.base import Record, parse_record
from pets_core.targets.tags.metrics import accuracy_multi, f1_scores

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "GRID",
    "THRESHOLDS",
    "Thresholds",
    "choose_thresholds",
    "read_thresholds",
    "threshold_curve",
]

THRESHOLDS = "thresholds.json"
"""Name of the file in the folders of a model and of an evaluation."""
GRID = np.linspace(0.01, 0.99, 99)
"""Candidate thresholds."""
_DEFAULT = 0.5


class Thresholds(Record):
    """Decision thresholds: a tag is predicted if its probability is at least its threshold.

    Attributes:
        kind: One threshold for all tags, or one for each.
        tags: Vocabulary, C.
        values: Threshold of each tag, C.
        num_photos: Number of validation photos they were chosen on; 0 for the default of 0.5.
    """

    kind: Literal["shared", "per_tag"] = "shared"
    tags: tuple[str, ...]
    values: tuple[float, ...]
    num_photos: int = 0

    @classmethod
    def default(cls, tags: Sequence[str]) -> Thresholds:
        """Return a threshold of 0.5 for each tag."""
        return cls(tags=tuple(tags), values=(_DEFAULT,) * len(tags))

    def apply(self, probabilities: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return the predicted tags, (N, C), for probabilities, (N, C)."""
        predicted: NDArray[np.bool_] = probabilities >= np.array(self.values, np.float32)
        return predicted


def threshold_curve(targets: NDArray[np.bool_], probabilities: NDArray[np.float32]) -> pd.DataFrame:
    """Compute metrics at each shared threshold of `GRID`.

    Args:
        targets: Actual tags of each validation photo, (N, C).
        probabilities: (N, C).

    Returns:
        Columns thresholds, micro_f1, macro_f1 and accuracy_multi.
    """
    import pandas as pd

    rows = []
    for threshold in GRID:
        predicted = probabilities >= np.float32(threshold)
        micro, macro, _ = f1_scores(targets, predicted)
        rows.append((threshold, micro, macro, accuracy_multi(targets, predicted)))
    return pd.DataFrame(rows, columns=["thresholds", "micro_f1", "macro_f1", "accuracy_multi"])


def choose_thresholds(
    targets: NDArray[np.bool_],
    probabilities: NDArray[np.float32],
    tags: Sequence[str],
    kind: Literal["shared", "per_tag"],
) -> Thresholds:
    """Choose the thresholds that maximise F1 (Lipton et al., 2014, arXiv:1402.1892).

    The shared threshold maximises micro-averaged F1; tags without validation photos always use it.
    Ties are resolved in favour of the threshold nearest to 0.5.

    Args:
        targets: Actual tags of each validation photo, (N, C), N at least 1.
        probabilities: (N, C).
        tags: C names.
        kind: One threshold for all tags, or one for each.
    """
    curve = threshold_curve(targets, probabilities)
    shared = _best(curve["micro_f1"].to_numpy())
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
    return float(equal[np.abs(equal - _DEFAULT).argmin()])


def read_thresholds(folder_url: str, tags: Sequence[str]) -> Thresholds | None:
    """Read the thresholds from a folder; None if it has none.

    Args:
        folder_url: Folder of the model, or of an evaluation of it.
        tags: Vocabulary of the model.

    Raises:
        PetsError: The file is damaged, or its vocabulary differs.
    """
    url = storage.join(storage.absolute(folder_url), THRESHOLDS)
    if not storage.exists(url):
        return None
    problem = f"{url} is damaged: remove it and evaluate the model"
    stored = parse_record(Thresholds, storage.read_bytes(url), problem)
    if stored.tags != tuple(tags) or len(stored.values) != len(stored.tags):
        raise PetsError(f"{url}: tags differ from the model's: remove it and evaluate the model")
    return stored
