"""How far a model's probabilities can be believed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pets_core.targets.classes.predictions import ClassPredictions

__all__ = ["Calibration", "Reliability", "calibrate", "fit_temperature", "reliability"]

_NUM_BINS = 15
_LOG_TEMPERATURES = (-3.0, 3.0)
_ROWS = 4096


@dataclass(frozen=True)
class Calibration:
    """Calibration of a model's probabilities (Guo and others 2017).

    Attributes:
        bins: Photos by confidence.
        temperature: Of temperature scaling, fitted on the validation photos; None where there are
            none.
        ece_after: Expected calibration error with that temperature, on the photos evaluated.
    """

    bins: Reliability
    temperature: float | None = None
    ece_after: float | None = None


@dataclass(frozen=True)
class Reliability:
    """Photos in bins of equal width by the model's confidence (Guo and others 2017).

    Attributes:
        counts: Photos in each bin, (15,).
        confidence: Their mean confidence, NaN in an empty bin, (15,).
        accuracy: Share of them that was right, NaN in an empty bin, (15,).
    """

    counts: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]

    @property
    def ece(self) -> float:
        """Expected calibration error: the mean gap between both, weighed by photos."""
        gaps = np.nan_to_num(np.abs(self.confidence - self.accuracy))
        return float((gaps * self.counts).sum() / self.counts.sum())


def reliability(confidence: NDArray[np.floating[Any]], right: NDArray[np.bool_]) -> Reliability:
    """Put photos into bins.

    Args:
        confidence: Probability of the most probable class, (N,).
        right: Whether it is the true one, (N,).
    """
    # As Guo and others: bin m holds ((m - 1) / M, m / M].
    bins = np.clip(np.ceil(confidence * _NUM_BINS).astype(np.int64) - 1, 0, _NUM_BINS - 1)
    counts = np.bincount(bins, minlength=_NUM_BINS)

    def mean(values: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        sums = np.bincount(bins, weights=values, minlength=_NUM_BINS)
        means = np.full(_NUM_BINS, np.nan)
        np.divide(sums, counts, out=means, where=counts > 0)
        return means

    return Reliability(counts, mean(confidence), mean(right.astype(np.float64)))


def fit_temperature(validation: ClassPredictions) -> float | None:
    """What to divide logits by so that the validation loss is least (Guo and others 2017).

    None where none between e^-3 and e^3 is least: a single class, or a model that is always right.
    """
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        own = (
            np.take_along_axis(cooled, validation.targets[rows, None], 1).sum()
            for rows, cooled in _cooled(validation, float(np.exp(log_temperature)))
        )
        return -float(sum(own)) / len(validation)

    found = minimize_scalar(loss, bounds=_LOG_TEMPERATURES, method="bounded")
    at_an_end = any(abs(found.x - end) < 0.01 for end in _LOG_TEMPERATURES)
    return None if at_an_end else float(np.exp(found.x))


def _cooled(
    predictions: ClassPredictions, temperature: float
) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Logarithms of the probabilities of cooled logits, some rows at a time: a copy is large."""
    for start in range(0, len(predictions), _ROWS):
        rows = slice(start, start + _ROWS)
        logs = np.log(np.maximum(predictions.outputs[rows], np.finfo(np.float32).tiny))
        yield rows, _log_softmax(logs / temperature)


def calibrate(predictions: ClassPredictions, validation: ClassPredictions | None) -> Calibration:
    """Measure calibration before and after temperature scaling.

    Args:
        predictions: To be evaluated.
        validation: What the temperature is fitted on; where these are the photos evaluated, it
            would flatter and is not.
    """
    bins = reliability(predictions.confidence, ~predictions.wrong)
    if validation is None or predictions.info.split == "valid":
        return Calibration(bins)
    temperature = fit_temperature(validation)
    if temperature is None:
        return Calibration(bins)
    cooled = [np.exp(logs.max(1)) for _, logs in _cooled(predictions, temperature)]
    after = reliability(np.concatenate(cooled), ~predictions.wrong)
    return Calibration(bins, temperature, after.ece)


def _log_softmax(logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return the logarithms of the probabilities of logits (N, C)."""
    shifted = logits - logits.max(1, keepdims=True).astype(np.float64)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return result
