"""Confusion matrix: counts, their order, the pairs confused most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "cluster_order",
    "confusion_counts",
    "confusion_table",
    "most_confused",
    "without_diagonal",
]

_MAX_OPTIMAL_ORDER = 200
"""Ordering the leaves of more classes as well as can be takes longer than it is worth."""


def confusion_counts(
    targets: NDArray[np.int64], predictions: NDArray[np.int64], num_classes: int
) -> NDArray[np.int64]:
    """Count how often each class was taken for each.

    Args:
        targets: Class indices, shape (n,).
        predictions: Class indices, shape (n,).
        num_classes: C.

    Returns:
        Shape (C, C): actual class in rows, predicted class in columns; the sum is n.

    Raises:
        ValueError: The shapes differ, or an index is outside 0 to C - 1.
    """
    if targets.shape != predictions.shape or targets.ndim != 1:
        raise ValueError(
            f"targets {targets.shape} and predictions {predictions.shape} must be two "
            "vectors of one length"
        )
    for name, indices in (("targets", targets), ("predictions", predictions)):
        # An index out of range would be counted in another row of the matrix.
        if indices.size and not 0 <= indices.min() <= indices.max() < num_classes:
            raise ValueError(
                f"{name} range from {indices.min()} to {indices.max()}: "
                f"class indices must be 0 to {num_classes - 1}"
            )
    cells = targets.astype(np.int64) * num_classes + predictions
    flat = np.bincount(cells, minlength=num_classes**2)
    return flat.astype(np.int64).reshape(num_classes, num_classes)


def cluster_order(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Order classes so that those that are confused with each other lie side by side.

    Average-linkage clustering of the confusions' shares, either way added up; of the orders that a
    clustering allows, that which has the likest neighbours (Bar-Joseph and others 2001).

    Args:
        counts: Shape (C, C): actual class in rows, predicted class in columns.

    Returns:
        A permutation of the class indices, (C,); the identity where nothing was confused.
    """
    errors = without_diagonal(counts)
    if len(counts) < 3 or not errors.any():
        return np.arange(len(counts))
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    share = errors / np.maximum(counts.sum(1, keepdims=True), 1)
    alike = share + share.T
    distance = 1 - alike / alike.max()
    np.fill_diagonal(distance, 0)
    tree = linkage(
        squareform(distance, checks=False), "average",
        optimal_ordering=len(counts) <= _MAX_OPTIMAL_ORDER,
    )  # fmt: skip
    order: NDArray[np.int64] = leaves_list(tree).astype(np.int64)
    return order


def most_confused(
    counts: NDArray[np.int64], class_names: Sequence[str], min_count: int = 1
) -> pd.DataFrame:
    """List the mistakes, most frequent first, as fastai's `most_confused(min_val)`.

    Args:
        counts: Shape (C, C): actual class in rows, predicted class in columns.
        class_names: Names in index order, C of them.
        min_count: Pairs confused fewer times are left out; at least 1.

    Returns:
        Columns actual, predicted, count, and share of the actual class's photos, without the
        diagonal; ties in order of actual, then predicted class index.
    """
    assert min_count >= 1, "a pair that was never confused is not a mistake"
    errors = without_diagonal(counts)
    errors[errors < min_count] = 0
    return confusion_table(errors, class_names, support=counts.sum(1))


def confusion_table(
    counts: NDArray[np.int64], class_names: Sequence[str], support: NDArray[np.int64] | None = None
) -> pd.DataFrame:
    """Return a row for each cell of a confusion matrix that is not 0.

    Args:
        counts: Shape (C, C): actual class in rows, predicted class in columns.
        class_names: Names in index order, C of them.
        support: Photos of each actual class, (C,); None: the sums of the rows.

    Returns:
        Columns actual, predicted, count, and share of the actual class's photos. Errors come
        before the diagonal, the most frequent first: an artifact holds the first rows alone. Ties
        are in order of actual, then predicted class index.
    """
    import pandas as pd

    actual, predicted = np.nonzero(counts)
    found = counts[actual, predicted]
    order = np.lexsort((predicted, actual, -found, actual == predicted))
    actual = actual[order]
    predicted = predicted[order]
    found = found[order]
    support = counts.sum(1) if support is None else support
    names = np.array(class_names, dtype=object)
    return pd.DataFrame(
        {
            "actual": names[actual],
            "predicted": names[predicted],
            "count": found,
            "share": found / support[actual],
        }
    )


def without_diagonal(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The errors alone."""
    errors = counts.copy()
    np.fill_diagonal(errors, 0)
    return errors
