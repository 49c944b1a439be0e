"""Probable errors in tags, by confident learning (Northcutt et al., 2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pets_core.evaluation.predictions import Predictions

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["tag_issues"]

_HALF = 0.5


def tag_issues(validation: Predictions) -> pd.DataFrame:
    """Return the photos whose tags are probably wrong.

    Each tag is checked independently, as in cleanlab's `multilabel_classification`. Tags of all
    photos or of none are skipped, because they carry no information.

    Args:
        validation: Predictions of the validation split.

    Returns:
        One row per photo, most probable error first: id, actual, proposed, and quality from 0 to 1.
    """
    import pandas as pd

    targets, values, names = validation.targets, validation.outputs, validation.info.names
    known = np.flatnonzero(targets.any(0) & ~targets.all(0))
    rows: list[int] = []
    quality = np.ones(len(targets))
    if len(known) and len(targets) > 1:
        from cleanlab.multilabel_classification.filter import find_label_issues
        from cleanlab.multilabel_classification.rank import get_label_quality_scores

        labels = [np.flatnonzero(row).tolist() for row in targets[:, known]]
        probabilities = values[:, known].astype(np.float64)
        found = find_label_issues(labels, probabilities, n_jobs=1)
        quality = get_label_quality_scores(labels, probabilities)
        proposed = values >= _HALF
        found &= (proposed[:, known] != targets[:, known]).any(1)
        rows = sorted(np.flatnonzero(found).tolist(), key=lambda row: float(quality[row]))

    def text(flags: np.ndarray) -> str:
        return ", ".join(names[i] for i in np.flatnonzero(flags))

    return pd.DataFrame(
        {
            "id": [validation.ids[row] for row in rows],
            "actual": [text(targets[row]) for row in rows],
            "proposed": [text(values[row] >= _HALF) for row in rows],
            "quality": quality[rows],
        }
    )
