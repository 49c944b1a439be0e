"""What the predictions of one split come to, as counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pets_core.records import ClassInfo, ConfusedPair

__all__ = ["ClassRow", "confusion_counts", "most_confused", "per_class"]


@dataclass(frozen=True, slots=True)
class ClassRow:
    """How one class did.

    Attributes:
        name: The class.
        species: Its species, where the data set tells.
        support: Its photos in the split.
        correct: How many of them were recognised.
        error_rate: Share of them that was not, 0 to 1; None where there are no photos.
        taken_for: The class it was most often mistaken for; None where there was no mistake.
    """

    name: str
    species: str | None
    support: int
    correct: int
    error_rate: float | None
    taken_for: str | None


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


def most_confused(
    counts: NDArray[np.int64], class_names: Sequence[str], min_count: int = 1
) -> list[ConfusedPair]:
    """List the mistakes, most frequent first, as fastai's `most_confused(min_val)`.

    Args:
        counts: Shape (C, C): actual class in rows, predicted class in columns.
        class_names: Names in index order, C of them.
        min_count: Pairs confused fewer times are left out; at least 1.

    Returns:
        Pairs without the diagonal; ties in order of actual, then predicted class index.
    """
    assert min_count >= 1, "a pair that was never confused is not a mistake"
    errors = _without_diagonal(counts)
    actual, predicted = np.nonzero(errors >= min_count)
    frequency = errors[actual, predicted]
    return [
        ConfusedPair(
            actual=class_names[actual[i]],
            predicted=class_names[predicted[i]],
            count=int(frequency[i]),
        )
        for i in np.argsort(-frequency, kind="stable")
    ]


def per_class(counts: NDArray[np.int64], classes: Sequence[ClassInfo]) -> list[ClassRow]:
    """Sum up each class, in index order.

    Args:
        counts: Shape (C, C): actual class in rows, predicted class in columns.
        classes: The vocabulary in index order, C of them.
    """
    errors = _without_diagonal(counts)
    return [
        _class_row(info, int(counts[i].sum()), int(counts[i, i]), errors[i], classes)
        for i, info in enumerate(classes)
    ]


def _class_row(
    info: ClassInfo,
    support: int,
    correct: int,
    errors: NDArray[np.int64],
    classes: Sequence[ClassInfo],
) -> ClassRow:
    return ClassRow(
        name=info.name,
        species=info.species,
        support=support,
        correct=correct,
        error_rate=(support - correct) / support if support else None,
        taken_for=classes[int(errors.argmax())].name if support > correct else None,
    )


def _without_diagonal(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    errors = counts.copy()
    np.fill_diagonal(errors, 0)
    return errors
