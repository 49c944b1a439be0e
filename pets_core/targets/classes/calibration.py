"""Calibration of predicted probabilities, with temperature scaling."""

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
    """Calibration before and after temperature scaling (Guo et al., 2017).

    Attributes:
        bins: Evaluated photos in bins of confidence.
        temperature: Temperature fitted on the validation photos; None if it was not fitted.
        ece_after: Expected calibration error of the evaluated photos after scaling.
    """

    bins: Reliability
    temperature: float | None = None
    ece_after: float | None = None


@dataclass(frozen=True)
class Reliability:
    """Confidence and accuracy in 15 bins of equal width (Guo et al., 2017).

    Attributes:
        counts: Number of photos in each bin, (15,).
        confidence: Mean confidence in each bin, (15,); NaN if the bin is empty.
        accuracy: Accuracy in each bin, (15,); NaN if the bin is empty.
    """

    counts: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]

    @property
    def ece(self) -> float:
        """Expected calibration error: mean |confidence - accuracy|, weighted by photos."""
        gaps = np.nan_to_num(np.abs(self.confidence - self.accuracy))
        return float((gaps * self.counts).sum() / self.counts.sum())


def reliability(confidence: NDArray[np.floating[Any]], correct: NDArray[np.bool_]) -> Reliability:
    """Bin photos by confidence.

    Args:
        confidence: Probability of the predicted class, (N,).
        correct: Whether the predicted class is the actual one, (N,).
    """
    # Guo et al.: bin m holds ((m - 1) / M, m / M].
    bins = np.clip(np.ceil(confidence * _NUM_BINS).astype(np.int64) - 1, 0, _NUM_BINS - 1)
    counts = np.bincount(bins, minlength=_NUM_BINS)

    def mean(values: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        sums = np.bincount(bins, weights=values, minlength=_NUM_BINS)
        means = np.full(_NUM_BINS, np.nan)
        np.divide(sums, counts, out=means, where=counts > 0)
        return means

    return Reliability(counts, mean(confidence), mean(correct.astype(np.float64)))


def fit_temperature(validation: ClassPredictions) -> float | None:
    """Return the temperature that minimises the validation loss (Guo et al., 2017).

    Returns:
        Divisor of the logits, or None if no temperature between e^-3 and e^3 is a minimum: there is
        a single class, or the model is always correct.
    """
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        log_likelihoods = (
            np.take_along_axis(scaled, validation.targets[rows, None], 1).sum()
            for rows, scaled in _scaled(validation, float(np.exp(log_temperature)))
        )
        return -float(sum(log_likelihoods)) / len(validation)

    result = minimize_scalar(loss, bounds=_LOG_TEMPERATURES, method="bounded")
    at_bound = any(abs(result.x - bound) < 0.01 for bound in _LOG_TEMPERATURES)
    return None if at_bound else float(np.exp(result.x))


def _scaled(
    predictions: ClassPredictions, temperature: float
) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Yield log-probabilities of scaled logits in blocks of rows, to bound memory."""
    from scipy.special import log_softmax

    for start in range(0, len(predictions), _ROWS):
        rows = slice(start, start + _ROWS)
        logs = np.log(np.maximum(predictions.outputs[rows], np.finfo(np.float32).tiny))
        yield rows, log_softmax((logs / temperature).astype(np.float64), axis=1)


def calibrate(predictions: ClassPredictions, validation: ClassPredictions | None) -> Calibration:
    """Measure calibration, and again after temperature scaling if a temperature can be fitted.

    It cannot without validation photos, if the fit fails, or if the validation split is evaluated:
    the result would be biased.

    Args:
        predictions: Predictions to evaluate.
        validation: Predictions to fit the temperature on, if any.
    """
    bins = reliability(predictions.confidence, ~predictions.wrong)
    if validation is None or predictions.info.split == "valid":
        return Calibration(bins)
    temperature = fit_temperature(validation)
    if temperature is None:
        return Calibration(bins)
    confidence = [np.exp(logs.max(1)) for _, logs in _scaled(predictions, temperature)]
    after = reliability(np.concatenate(confidence), ~predictions.wrong)
    return Calibration(bins, temperature, after.ece)
