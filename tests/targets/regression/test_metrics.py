"""Errors of numbers: hand-computed values and properties."""

from functools import partial

import numpy as np
import pandas as pd
import pytest

from pets_core.evaluation.compare import reduce_scores
from pets_core.evaluation.intervals import bootstrap_interval
from pets_core.records.dataset import NumberInfo
from pets_core.records.evaluation import Metric
from pets_core.targets.regression.metrics import (
    mean_baseline,
    number_table,
    rmse,
    standard_errors,
)
from pets_core.targets.regression.target import NumbersEvaluator


def column(*values: float) -> np.ndarray:
    return np.array(values, np.float32)[:, None]


def only_row(table: pd.DataFrame) -> object:
    (row,) = table.itertuples()
    return row


@pytest.fixture
def metrics_of(draw_kind):
    """Return a function that computes the RMSE and MAE of predictions."""

    def metrics(targets, predicted) -> tuple[Metric, Metric]:
        names = [f"n{index}" for index in range(targets.shape[1])]
        drawn = draw_kind("numbers", len(targets), names=names, units=["kg"] * len(names))
        drawn.targets[:], drawn.outputs[:] = targets, predicted
        evaluator = NumbersEvaluator(drawn)
        (mae,) = evaluator.metrics()
        return evaluator.score().metric, mae

    return metrics


def test_errors_of_one_number_computed_by_hand():
    info = NumberInfo(name="age", unit="years", mean=2.0)
    found = only_row(number_table([info], column(1, 2, 3, 6), column(1, 3, 3, 3)))
    # Errors: 0, 1, 0, -3. Errors of the mean: 1, 0, -1, -4. The squares about the mean 3 sum to 14.
    assert (found.name, found.unit) == ("age", "years")
    assert found.mae == pytest.approx(1.0)
    assert found.rmse == pytest.approx(np.sqrt(10 / 4))
    assert found.bias == pytest.approx(-0.5)
    assert found.r2 == pytest.approx(1 - 10 / 14)
    assert found.median == pytest.approx(0.5)
    assert found.p95 == pytest.approx(1 + 0.85 * 2)
    assert found.baseline_mae == pytest.approx(1.5)
    assert found.baseline_rmse == pytest.approx(np.sqrt(18 / 4))


def test_each_number_has_its_own_errors():
    infos = [NumberInfo(name=name) for name in "ab"]
    table = number_table(infos, np.zeros((3, 2)), np.tile([1.0, -2.0], (3, 1)))
    first, second = table.itertuples()
    assert (first.name, first.mae, first.bias) == ("a", 1.0, 1.0)
    assert (second.name, second.mae, second.bias) == ("b", 2.0, -2.0)


def test_r2_of_constant_numbers_is_nan():
    """0.1 is not exact in binary, so a mean of many is not exactly 0.1."""
    info = NumberInfo(name="a", mean=0.1)
    found = only_row(number_table([info], column(*[0.1] * 37), column(*[0.2] * 37)))
    assert np.isnan(found.r2)
    assert found.mae == pytest.approx(0.1)
    alone = only_row(number_table([info], column(1), column(2)))
    assert np.isnan(alone.r2)
    assert (alone.mae, alone.p95) == (1.0, 1.0)


def test_baseline_is_the_mean_of_the_training_photos():
    infos = [NumberInfo(name="a", mean=3.0), NumberInfo(name="b", mean=-1.0)]
    assert mean_baseline(infos, 2).tolist() == [[3.0, -1.0], [3.0, -1.0]]
    assert rmse(mean_baseline(infos, 2) - np.array([[3.0, 1.0], [3.0, 1.0]])) == pytest.approx(
        np.sqrt(2)
    )


def test_intervals_contain_the_value_and_are_reproducible(metrics_of):
    random = np.random.default_rng(0)
    targets, predicted = random.normal(size=(2, 300, 2)).astype(np.float32)
    overall, mae = metrics_of(targets, predicted)
    errors = targets.astype(np.float64) - predicted
    assert mae.value == pytest.approx(np.abs(errors).mean())
    assert overall.value == pytest.approx(rmse(errors))
    for metric in (mae, overall):
        assert metric.low < metric.value < metric.high
    assert metrics_of(targets, predicted) == (overall, mae)
    squares, root_mean = np.square(errors).mean(1), partial(reduce_scores, is_root=True)
    assert bootstrap_interval(root_mean, squares).low == overall.low
    assert bootstrap_interval(root_mean, squares, seed=1).low != overall.low


def test_interval_width_matches_the_standard_error(metrics_of):
    """With absolute errors of 0 or 1, the standard error is that of a proportion."""
    wrong = np.arange(400)[:, None] % 2
    overall, mae = metrics_of(np.zeros((400, 1)), wrong.astype(np.float32))
    assert (mae.high - mae.low) / 2 == pytest.approx(1.96 * np.sqrt(0.25 / 400), rel=0.1)
    assert overall.low == pytest.approx(np.sqrt(mae.low), rel=0.02)


def test_bootstrap_resamples_photos_not_numbers(metrics_of):
    """Duplicating a number does not change the interval."""
    targets, predicted = np.random.default_rng(0).normal(size=(2, 50, 1))
    once = metrics_of(targets, predicted)
    twice = metrics_of(np.tile(targets, 2), np.tile(predicted, 2))
    for one, two in zip(once, twice, strict=True):
        assert (one.value, one.low, one.high) == pytest.approx((two.value, two.low, two.high))


def test_interval_of_one_photo_is_its_error(metrics_of):
    for metric in metrics_of(column(1), column(3)):
        assert {metric.value, metric.low, metric.high} == {2.0}


def test_photo_errors_are_in_standard_deviations(draw_kind):
    infos = [NumberInfo(name="a", std=10.0), NumberInfo(name="b", std=0.1)]
    off = np.array([[10.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    drawn = draw_kind("numbers", 3, numbers=infos)
    drawn.targets[:], drawn.outputs[:] = 0, off
    found = NumbersEvaluator(drawn).photo_errors
    assert found == pytest.approx([np.sqrt(1 / 2), np.sqrt(50), 0])
    same = standard_errors([NumberInfo(name="a", std=0.0)], column(1), column(3))
    assert same.tolist() == [[2.0]]
