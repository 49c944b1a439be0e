"""Probable label errors of classes, by confident learning (Northcutt et al., 2021)."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

from pets_core.targets.classes.predictions import ClassPredictions

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["label_issues"]


def label_issues(validation: ClassPredictions) -> pd.DataFrame:
    """Return the photos whose label is probably wrong.

    Args:
        validation: Predictions of the validation split. A model has memorised its training photos,
            and changing test labels to its predictions would bias the test metrics.

    Returns:
        One row per photo in the format of `source.label_fixes`, most probable error first: id,
        label (proposed), given (current), label_probability, given_probability. Empty if fewer than
        two classes have photos.
    """
    import pandas as pd

    rows = _suspicious_rows(validation)
    names = np.array(validation.names, dtype=object)
    targets = validation.targets[rows]
    return pd.DataFrame(
        {
            "id": [validation.ids[row] for row in rows],
            "label": names[validation.predicted[rows]],
            "given": names[targets],
            "label_probability": validation.confidence[rows],
            "given_probability": validation.outputs[rows, targets],
        }
    )


def _suspicious_rows(validation: ClassPredictions) -> list[int]:
    present = np.unique(validation.targets)
    if len(present) < 2:
        return []
    from cleanlab.filter import find_label_issues

    # cleanlab needs at least one photo of every class: drop the other classes.
    labels = np.searchsorted(present, validation.targets)
    probabilities = validation.outputs
    if len(present) < probabilities.shape[1]:
        probabilities = probabilities[:, present]
        probabilities /= np.maximum(probabilities.sum(1, keepdims=True), np.finfo(np.float32).tiny)
    with warnings.catch_warnings():
        # cleanlab warns once for each class with few photos.
        warnings.filterwarnings("ignore", "May not flag all label issues")
        found = find_label_issues(
            labels, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1
        )
    return [
        row
        for row in np.asarray(found).tolist()
        if validation.predicted[row] != validation.targets[row]
    ]
