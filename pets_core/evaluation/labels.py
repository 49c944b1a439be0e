"""Photos whose label is probably wrong, by confident learning (Northcutt and others 2021)."""

from __future__ import annotations

import warnings

import numpy as np

from pets_core import storage
from pets_core.evaluation.predictions import Predictions
from pets_core.records.evaluation import LabelIssue
from pets_core.storage.csv import write_csv

__all__ = ["label_issues", "write_label_fixes"]


def label_issues(validation: Predictions) -> list[LabelIssue]:
    """Find labels that the model, which was not trained on these photos, contradicts.

    Args:
        validation: Of photos that were held out. A model knows those it was trained on by heart,
            and whoever mends labels of the test photos by its word judges it by its own word.

    Returns:
        The likeliest errors first; none where fewer than two classes have photos.
    """
    present = np.unique(validation.targets)
    if len(present) < 2:
        return []
    from cleanlab.filter import find_label_issues

    # It takes a vocabulary without gaps: every class must have a photo.
    places = np.searchsorted(present, validation.targets)
    probabilities = validation.probabilities
    if len(present) < probabilities.shape[1]:
        probabilities = probabilities[:, present]
        probabilities /= np.maximum(probabilities.sum(1, keepdims=True), np.finfo(np.float32).tiny)
    with warnings.catch_warnings():
        # One for each class of few photos, in which it finds less.
        warnings.filterwarnings("ignore", "May not flag all label issues")
        found = find_label_issues(
            places, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1
        )
    names = validation.names
    return [
        LabelIssue(
            id=validation.ids[row],
            label=names[int(validation.targets[row])],
            proposed=names[int(validation.predicted[row])],
            label_probability=float(validation.probabilities[row, validation.targets[row]]),
            proposed_probability=float(validation.confidence[row]),
        )
        for row in np.asarray(found).tolist()
        if validation.predicted[row] != validation.targets[row]
    ]


def write_label_fixes(url: str, issues: list[LabelIssue]) -> None:
    """Write a CSV that `source.label_fixes` takes, once somebody has looked at its rows.

    Columns: id, label (the proposed one), and what it is proposed for: given, given_probability,
    label_probability.
    """
    rows = (
        [issue.id, issue.proposed, issue.label,
         f"{issue.proposed_probability:.4f}", f"{issue.label_probability:.4f}"]
        for issue in issues
    )  # fmt: skip
    header = ["id", "label", "given", "label_probability", "given_probability"]
    storage.write_bytes(url, write_csv(header, rows))
