"""Learning-rate range test, and its suggestions for curves with known answers."""

import numpy as np
import pytest
from accelerate import Accelerator

from pets_core.config.train import LRFindConfig, TrainConfig
from pets_core.errors import PetsError
from pets_core.records.training import Suggestions
from pets_core.targets.classes.objective import SingleLabel
from pets_core.training import lr_finder
from pets_core.training.lr_finder import Curve, lr_find, read_suggestions, suggest, trim_curve
from pets_core.training.prepared import prepare

RATES = np.geomspace(1e-6, 1.0, 100)


def falling_then_rising() -> np.ndarray:
    """Return losses: flat at 3 until 1e-4, steepest at 1e-3, minimum near 3e-2, then rising."""
    logs = np.log10(RATES)
    return 1 + 2 / (1 + np.exp(4 * (logs + 3))) + 20 * np.clip(logs + 1.5, 0, None) ** 2


def test_minimum_is_a_tenth_of_the_best_rate() -> None:
    losses = falling_then_rising()
    assert suggest(RATES, losses).minimum == pytest.approx(RATES[losses.argmin()] / 10)


def test_steepest_is_where_the_loss_falls_fastest() -> None:
    assert suggest(RATES, falling_then_rising()).steepest == pytest.approx(1e-3, rel=0.2)


def test_valley_is_in_the_descent() -> None:
    valley = suggest(RATES, falling_then_rising()).valley
    # The longest descent runs from the first rate to the least loss, near 10^-1.5.
    end = int(falling_then_rising().argmin())
    assert valley == pytest.approx(RATES[int(end / 3) + int(end / 6)], rel=0.2)


@pytest.mark.parametrize(
    ("steepest", "limited"), [(1e-6, 1e-3), (1e-3, 1e-3), (3e-3, 3e-3), (4e-3, 4e-3), (9e-3, 4e-3)]
)
def test_limited_is_between_valley_and_its_geometric_mean_with_minimum(steepest, limited) -> None:
    found = Suggestions(minimum=1.6e-2, steepest=steepest, valley=1e-3, slide=1.0)
    assert found.limited == pytest.approx(limited)


def test_slide_stops_where_slopes_agree() -> None:
    assert 1e-6 <= suggest(RATES, falling_then_rising()).slide <= 1.0
    assert suggest(RATES, np.linspace(3, 1, 100)).slide == RATES[84]


def test_a_short_curve_still_has_suggestions() -> None:
    suggest(RATES[:5], np.array([3.0, 2.5, 2.0, 2.5, 3.0]))


def run_lr_find(model, loader, **settings):
    return lr_find(
        model,
        SingleLabel(),
        loader,
        LRFindConfig(**settings),
        TrainConfig(batch_size=64, freeze_epochs=0, weight_decay=0.0, batch_norm="train"),
        accelerator=Accelerator(cpu=True, mixed_precision="no"),
    )


def test_rates_rise_geometrically_over_several_epochs(tiny_model, tiny_loader) -> None:
    curve = run_lr_find(tiny_model, tiny_loader, num_steps=20, start_lr=1e-5, end_lr=1e-2)
    assert tiny_loader.num_batches < 20
    assert curve.rates == pytest.approx(np.geomspace(1e-5, 1e-2, 20))
    assert len(curve.losses) == len(curve.smoothed) == 20


@pytest.mark.parametrize(
    ("settings", "first_group"),
    [({"freeze_epochs": 1}, -1), ({"head": "probe"}, -1), ({"freeze_epochs": 0}, 0)],
)
def test_body_is_frozen_if_training_starts_with_the_head(
    tiny_model, tiny_loader, monkeypatch, settings, first_group
) -> None:
    groups = []
    monkeypatch.setattr(
        lr_finder, "prepare", lambda *args: groups.append(args[5]) or prepare(*args)
    )
    lr_find(
        tiny_model, SingleLabel(), tiny_loader, LRFindConfig(num_steps=10),
        TrainConfig(batch_size=64, **settings),
        accelerator=Accelerator(cpu=True, mixed_precision="no"),
    )  # fmt: skip
    assert groups == [first_group]


def test_range_test_stops_when_the_loss_diverges(tiny_model, tiny_loader) -> None:
    tiny_loader.inputs *= 50
    curve = run_lr_find(tiny_model, tiny_loader, num_steps=200, start_lr=1e-4, end_lr=1e4)
    assert 10 <= len(curve.rates) < 200


def test_non_finite_loss_is_a_clear_error(tiny_model, tiny_loader) -> None:
    tiny_loader.inputs[:] = float("nan")
    curve = run_lr_find(tiny_model, tiny_loader, start_lr=1e-5)
    with pytest.raises(PetsError, match=r"after 0 steps: lower lr_find.start_lr \(now 1e-05\)"):
        read_suggestions(curve, LRFindConfig(start_lr=1e-5))


def test_rising_loss_is_an_error() -> None:
    losses = np.linspace(1, 3, 100)
    with pytest.raises(PetsError, match=r"the loss never fell"):
        read_suggestions(Curve(RATES, losses, losses), LRFindConfig())


def test_trimming_keeps_at_least_two_points(tiny_model, tiny_loader) -> None:
    curve = run_lr_find(tiny_model, tiny_loader, num_steps=10, start_lr=1e-5, end_lr=1e-2)
    rates, losses = trim_curve(curve)
    assert len(rates) == len(losses) >= 2
