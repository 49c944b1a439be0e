"""Schedules and rates against values computed from the published formulas."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pets_core.config.automatic import resolve_recipe
from pets_core.config.rates import RateSlice
from pets_core.config.train import TrainConfig
from pets_core.records.target_spec import BUILT_IN_SPECS
from pets_core.training.schedule import (
    OneCycle,
    cosine,
    few_steps_warning,
    fine_tune_phases,
    group_rates,
)


def test_cosine_is_half_a_period() -> None:
    assert cosine(2.0, 0.0, 0.0) == 2.0
    assert cosine(2.0, 0.0, 0.5) == pytest.approx(1.0)
    assert cosine(2.0, 0.0, 1.0) == pytest.approx(0.0)
    assert cosine(1.0, 0.0, 1 / 3) == pytest.approx((1 + math.cos(math.pi / 3)) / 2)


def test_one_cycle_rises_to_its_peak_and_falls_to_almost_zero() -> None:
    schedule = OneCycle(num_steps=100, pct_start=0.3, div=25.0, div_final=1e5)
    assert schedule.lr_factor(0) == pytest.approx(1 / 25)
    assert schedule.lr_factor(15) == pytest.approx((1 / 25 + 1) / 2)
    assert schedule.lr_factor(30) == pytest.approx(1.0)
    assert schedule.lr_factor(65) == pytest.approx((1 + 1e-5) / 2)
    assert schedule.lr_factor(99) == pytest.approx(cosine(1, 1e-5, 69 / 70))


def test_momentum_falls_while_the_rate_rises() -> None:
    schedule = OneCycle(num_steps=100, pct_start=0.3)
    assert schedule.momentum(0) == pytest.approx(0.95)
    assert schedule.momentum(30) == pytest.approx(0.85)
    assert schedule.momentum(65) == pytest.approx(0.90)


@given(steps=st.integers(1, 500), pct=st.floats(0.01, 0.99), div=st.floats(1.0, 100.0))
def test_one_cycle_stays_within_its_bounds(steps: int, pct: float, div: float) -> None:
    schedule = OneCycle(steps, pct, div)
    factors = [schedule.lr_factor(step) for step in range(steps)]
    assert all(0 < factor <= 1 for factor in factors)
    assert all(0.85 <= schedule.momentum(step) <= 0.95 for step in range(steps))


def test_group_rates_of_each_form_of_slice() -> None:
    assert group_rates(RateSlice.parse("slice(1e-6, 1e-4)"), 3) == pytest.approx([1e-6, 1e-5, 1e-4])
    assert group_rates(RateSlice.parse("slice(1e-3)"), 3) == pytest.approx([1e-4, 1e-4, 1e-3])
    assert group_rates(RateSlice.parse(2e-3), 3) == [2e-3] * 3
    assert group_rates(RateSlice.parse("slice(1e-6, 1e-4)"), 1) == [1e-4]


def recipe(**settings) -> TrainConfig:
    """Return settings with the automatic values of a large data set."""
    return resolve_recipe(TrainConfig.model_validate(settings), BUILT_IN_SPECS["class"], 10_000)


def test_fine_tune_lowers_the_rate_and_spreads_it() -> None:
    _, unfrozen = fine_tune_phases(recipe(), 2e-3, 9)
    assert (unfrozen.lr_max.lo, unfrozen.lr_max.hi) == pytest.approx((4e-6, 4e-4))


def test_fine_tune_with_fastais_defaults() -> None:
    config = recipe(epochs=4, unfrozen_lr_div=2, unfreeze_to=0)
    frozen, unfrozen = fine_tune_phases(config, 2e-3, 9)
    assert (frozen.name, frozen.epochs, frozen.freeze_to) == ("frozen", 1, -1)
    assert frozen.lr_max == RateSlice(2e-3)
    assert (unfrozen.name, unfrozen.epochs, unfrozen.freeze_to) == ("unfrozen", 4, 0)
    assert (unfrozen.lr_max.lo, unfrozen.lr_max.hi) == pytest.approx((1e-5, 1e-3))


def test_fine_tune_with_the_lessons_rates() -> None:
    config = recipe(freeze_epochs=1, epochs=12, lr_max="slice(1e-6, 1e-4)")
    _, unfrozen = fine_tune_phases(config, 3e-3, 9)
    assert (unfrozen.lr_max.lo, unfrozen.lr_max.hi) == (1e-6, 1e-4)
    assert unfrozen.freeze_to == 0


@pytest.mark.parametrize(
    ("settings", "num_groups", "first"),
    [
        ({}, 9, 4),
        ({}, 6, 3),
        ({}, 3, 1),
        ({}, 2, 0),
        ({}, 1, 0),
        ({"freeze_to": -7}, 9, 2),
        ({"lr_mult": 10}, 9, 0),
        ({"lr_mult": 1}, 9, 0),
        ({"unfreeze_to": -2}, 9, -2),
        ({"lr_max": "slice(1e-6, 1e-4)"}, 9, 0),
        ({"lr_max": "slice(1e-6, 1e-4)", "unfreeze_to": 5}, 9, 5),
    ],
)
def test_groups_below_a_tenth_of_the_heads_rate_stay_frozen(settings, num_groups, first) -> None:
    *_, unfrozen = fine_tune_phases(recipe(**settings), 3e-3, num_groups)
    assert unfrozen.freeze_to == first
    if not settings and num_groups > 2:
        rates = group_rates(unfrozen.lr_max, num_groups)
        assert rates[first] >= 0.0999 * rates[-1] > rates[first - 1]


def test_phase_without_epochs_is_omitted() -> None:
    assert [p.name for p in fine_tune_phases(recipe(epochs=0), 1e-3, 9)] == ["frozen"]
    assert [p.name for p in fine_tune_phases(recipe(freeze_epochs=0), 1e-3, 9)] == ["unfrozen"]


@pytest.mark.parametrize(("num_rows", "warns"), [(576, True), (577, False)])
def test_few_optimizer_steps_are_a_warning(num_rows, warns):
    warning = few_steps_warning(TrainConfig(freeze_epochs=1, epochs=2, batch_size=64), num_rows)
    assert bool(warning) == warns
    assert not warns or "only 27 optimizer steps" in warning


@pytest.mark.parametrize(
    ("num_rows", "batch_size", "epochs"), [(3, 8, 30), (176, 16, 3), (400, 32, 3), (900, 64, 2)]
)
def test_warning_names_a_recipe_with_enough_steps(num_rows, batch_size, epochs):
    warning = few_steps_warning(TrainConfig(epochs=1, batch_size=128), num_rows)
    assert (
        f"train.batch_size = {batch_size} (now 128) and train.epochs = {epochs} (now 1)." in warning
    )
    few = few_steps_warning(TrainConfig(epochs=1, batch_size=batch_size), num_rows)
    assert "batch_size" not in few
    enough = TrainConfig(freeze_epochs=0, epochs=epochs, batch_size=batch_size)
    assert few_steps_warning(enough, num_rows) == ""
    assert few_steps_warning(TrainConfig(recipe="probe", batch_size=8), num_rows) == ""


@pytest.mark.parametrize("num_rows", [1, 3, 60, 176, 400, 999, 1000])
def test_automatic_recipe_takes_enough_steps(num_rows):
    for spec in BUILT_IN_SPECS.values():
        assert few_steps_warning(resolve_recipe(TrainConfig(), spec, num_rows), num_rows) == ""
