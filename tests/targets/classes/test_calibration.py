"""Calibration, against hand-computed values and models of known miscalibration."""

import numpy as np
import pytest
from predictions_of import predictions_of

from pets_core.targets.classes.calibration import calibrate, fit_temperature, reliability
from pets_core.targets.classes.predictions import ClassPredictions


def test_calibration_error_computed_by_hand():
    confidence = np.array([0.95, 0.95, 0.95, 0.95, 0.55, 0.55])
    right = np.array([True, True, True, False, True, False])
    bins = reliability(confidence, right)
    assert bins.counts.sum() == 6
    assert bins.counts[14] == 4
    # Guo et al.: |0.75 - 0.95| weighs 4/6, |0.5 - 0.55| weighs 2/6.
    assert bins.ece == pytest.approx(4 / 6 * 0.2 + 2 / 6 * 0.05)


def test_confidence_on_a_bin_edge_belongs_to_the_lower_bin():
    assert reliability(np.array([1.0, 0.2, 0.0]), np.array([True] * 3)).counts[[14, 2, 0]].all()


def sharpen(predictions: ClassPredictions, factor: float) -> ClassPredictions:
    """Multiply the logits of predictions by a factor."""
    powered = predictions.outputs.astype(np.float64) ** factor
    powered /= powered.sum(1, keepdims=True)
    return predictions_of(
        predictions.info, predictions.ids, predictions.targets, powered.astype(np.float32)
    )


def calibrated(draw_classes, seed: int, split: str) -> ClassPredictions:
    """Draw a calibrated model: targets are sampled from its own probabilities."""
    predictions = draw_classes(4000, 6, seed=seed, split=split)
    random = np.random.default_rng(seed)
    targets = [random.choice(6, p=p / p.sum()) for p in predictions.outputs.astype(float)]
    return predictions_of(predictions.info, predictions.ids, np.array(targets), predictions.outputs)


def test_temperature_recovers_the_factor_of_an_overconfident_model(draw_classes):
    validation = sharpen(calibrated(draw_classes, 1, "valid"), 2.5)
    assert fit_temperature(validation) == pytest.approx(2.5, rel=0.08)
    evaluated = sharpen(calibrated(draw_classes, 2, "test"), 2.5)
    calibration = calibrate(evaluated, validation)
    assert calibration.bins.ece > 0.1
    assert calibration.ece_after < 0.03


def test_calibrated_model_has_temperature_1(draw_classes):
    calibration = calibrate(
        calibrated(draw_classes, 1, "test"), calibrated(draw_classes, 2, "valid")
    )
    assert calibration.temperature == pytest.approx(1, abs=0.08)
    assert calibration.bins.ece < 0.03
    assert calibration.bins.counts.sum() == 4000


def test_no_temperature_is_fitted_on_the_evaluated_photos(draw_classes):
    predictions = draw_classes(split="valid")
    calibration = calibrate(predictions, predictions)
    assert calibration.temperature is calibration.ece_after is None
    assert calibrate(draw_classes(), None).temperature is None
