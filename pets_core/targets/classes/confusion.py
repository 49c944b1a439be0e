"""Confusion matrix: counts, order of the classes, most confused pairs."""

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
"""Most classes to use optimal leaf ordering for; it is slow for more."""


def confusion_counts(
    targets: NDArray[np.int64], predictions: NDArray[np.int64], num_classes: int
) -> NDArray[np.int64]:
    """Return the confusion matrix.

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
            f"targets {targets.shape} and predictions {predictions.shape} must be vectors of equal "
            "length"
        )
    for name, indices in (("targets", targets), ("predictions", predictions)):
        # An index out of range would be counted in another row of the matrix.
        if indices.size and not 0 <= indices.min() <= indices.max() < num_classes:
            raise ValueError(
                f"{name} range from {indices.min()} to {indices.max()}: "
                f"class indices must be from 0 to {num_classes - 1}"
            )
    cells = targets.astype(np.int64) * num_classes + predictions
    flat = np.bincount(cells, minlength=num_classes**2)
    return flat.astype(np.int64).reshape(num_classes, num_classes)


def cluster_order(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Order classes so that those often confused with each other are adjacent.

    Average-linkage clustering of the symmetrised confusion rates, with optimal leaf ordering
    (Bar-Joseph et al., 2001) of up to 200 classes.

    Args:
        counts: Shape (C, C): actual class in rows, predicted class in columns.

    Returns:
        A permutation of the class indices, (C,); the identity if nothing was confused.
    """
    errors = without_diagonal(counts)
    if len(counts) < 3 or not errors.any():
        return np.arange(len(counts))
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    share = errors / np.maximum(counts.sum(1, keepdims=True), 1)
    similarity = share + share.T
    distance = 1 - similarity / similarity.max()
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
    """List the confused pairs, most frequent first, as fastai's `most_confused(min_val)`.

    Args:
        counts: Shape (C, C): actual class in rows, predicted class in columns.
        class_names: Names in index order, C of them.
        min_count: Drop pairs confused fewer times; at least 1.

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
    """Return one row for each non-zero cell of a confusion matrix.

    Args:
        counts: Shape (C, C): actual class in rows, predicted class in columns.
        class_names: Names in index order, C of them.
        support: Number of photos of each actual class, (C,); None for the row sums.

    Returns:
        Columns actual, predicted, count, and share of the actual class's photos. Errors come
        before the diagonal, most frequent first, because artifacts show the first rows only. Ties
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
    """Return a copy of a confusion matrix with the errors only."""
    errors = counts.copy()
    np.fill_diagonal(errors, 0)
    return errors
