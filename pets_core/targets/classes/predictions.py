"""Predictions of classes."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pets_core.evaluation.predictions import Predictions

__all__ = ["ClassPredictions"]


@dataclass(frozen=True)
class ClassPredictions(Predictions):
    """Predictions of N photos and C classes; outputs are probabilities, (N, C)."""

    @classmethod
    def of(cls, predictions: Predictions) -> ClassPredictions:
        """Convert predictions to this class."""
        return cls(*(getattr(predictions, each.name) for each in fields(Predictions)))

    @property
    def names(self) -> list[str]:
        """Class names in index order."""
        return self.info.names

    @cached_property
    def predicted(self) -> NDArray[np.int64]:
        """Most probable class, int64 (N,)."""
        found: NDArray[np.int64] = self.outputs.argmax(1)
        return found

    @cached_property
    def confidence(self) -> NDArray[np.float32]:
        """Probability of the most probable class, (N,)."""
        found = np.take_along_axis(self.outputs, self.predicted[:, None], axis=1)
        confidence: NDArray[np.float32] = found[:, 0]
        return confidence

    @cached_property
    def wrong(self) -> NDArray[np.bool_]:
        """Whether each photo is misclassified, (N,)."""
        return np.asarray(self.predicted != self.targets)
