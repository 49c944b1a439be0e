"""Photos whose tags are probably wrong, by confident learning (Northcutt and others 2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pets_core.evaluation.predictions import Predictions

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["tag_issues"]

_HALF = 0.5


def tag_issues(validation: Predictions) -> pd.DataFrame:
    """Find photos whose tags the model, which was not trained on them, contradicts.

    Each tag is looked at by itself, as cleanlab's `multilabel_classification` does. Tags that all
    photos have, or none, are left out: nothing can be learnt of them.

    Args:
        validation: Predictions of photos that were held out.

    Returns:
        A row a photo, the likeliest error first: id, actual, proposed, and quality, 0 to 1.
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
