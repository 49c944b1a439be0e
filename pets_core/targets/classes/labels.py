"""Photos whose label is probably wrong, by confident learning (Northcutt and others 2021)."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

from pets_core.targets.classes.predictions import ClassPredictions

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["label_issues"]


def label_issues(validation: ClassPredictions) -> pd.DataFrame:
    """Find labels that the model, which was not trained on these photos, contradicts.

    Args:
        validation: Of photos that were held out. A model has memorised those it was trained on,
            and labels of test photos that are changed to its predictions flatter it.

    Returns:
        A row a photo, the likeliest error first, as `source.label_fixes` takes them: id, label (the
        proposed one), given (the present one), label_probability, given_probability. No row where
        fewer than two classes have photos.
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

    # It takes a vocabulary without gaps: every class must have a photo.
    places = np.searchsorted(present, validation.targets)
    probabilities = validation.outputs
    if len(present) < probabilities.shape[1]:
        probabilities = probabilities[:, present]
        probabilities /= np.maximum(probabilities.sum(1, keepdims=True), np.finfo(np.float32).tiny)
    with warnings.catch_warnings():
        # One for each class of few photos, in which it finds less.
        warnings.filterwarnings("ignore", "May not flag all label issues")
        found = find_label_issues(
            places, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1
        )
    return [
        row
        for row in np.asarray(found).tolist()
        if validation.predicted[row] != validation.targets[row]
    ]
