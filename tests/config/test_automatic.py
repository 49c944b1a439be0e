"""The automatic recipe by number of samples and kind of target."""

import pytest

from pets_core.config.automatic import automatic_batch_size, resolve_recipe
from pets_core.config.train import TrainConfig
from pets_core.records.target_spec import BUILT_IN_SPECS

CLASS, BOX = BUILT_IN_SPECS["class"], BUILT_IN_SPECS["box"]


@pytest.mark.parametrize(
    ("num_rows", "batch_size"),
    [
        (1, 8),
        (100, 8),
        (159, 8),
        (160, 16),
        (209, 16),
        (320, 32),
        (639, 32),
        (640, 64),
        (10**6, 64),
    ],
)
def test_batch_size_leaves_ten_steps_per_epoch(num_rows, batch_size):
    assert automatic_batch_size(num_rows) == batch_size
    assert resolve_recipe(TrainConfig(), CLASS, num_rows).batch_size == batch_size


def test_large_data_set_has_the_default_recipe():
    recipe = resolve_recipe(TrainConfig(), CLASS, 1000)
    assert (recipe.head, recipe.freeze_epochs, recipe.epochs) == ("new", 1, 2)
    assert (recipe.batch_size, recipe.lr_mult, recipe.unfrozen_lr_div) == (64, 100.0, 5.0)


@pytest.mark.parametrize(
    "settings", [{"freeze_epochs": 1}, {"freeze_to": -2}, {"head": "new"}, {"epochs": 0}]
)
def test_small_data_set_starts_from_a_probe_unless_settings_say_otherwise(settings):
    assert resolve_recipe(TrainConfig(), CLASS, 999).head == "probe"
    recipe = resolve_recipe(TrainConfig.model_validate(settings), CLASS, 999)
    assert (recipe.head, recipe.freeze_epochs) == ("new", 1)


def test_probe_recipe_has_no_epochs():
    recipe = resolve_recipe(TrainConfig(recipe="probe"), BOX, 200)
    assert (recipe.head, recipe.num_epochs) == ("probe", 0)


@pytest.mark.parametrize(
    ("spec", "num_rows", "epochs", "div", "mult"),
    [
        (CLASS, 200, 2, 25.0, 100.0),
        (CLASS, 3000, 2, 5.0, 100.0),
        (BOX, 200, 10, 2.0, 10.0),
        (BOX, 3000, 2, 2.0, 10.0),
    ],
)
def test_epochs_and_rates_follow_kind_and_number_of_photos(spec, num_rows, epochs, div, mult):
    recipe = resolve_recipe(TrainConfig(), spec, num_rows)
    assert (recipe.epochs, recipe.unfrozen_lr_div, recipe.lr_mult) == (epochs, div, mult)


def test_set_values_are_kept():
    settings = {
        "head": "new", "freeze_epochs": 3, "epochs": 1, "batch_size": 5, "lr_mult": 7.0,
        "unfrozen_lr_div": 3.0,
    }  # fmt: skip
    recipe = resolve_recipe(TrainConfig.model_validate(settings), BOX, 20)
    assert recipe == TrainConfig.model_validate(settings)
    assert resolve_recipe(recipe, CLASS, 10**6) == recipe
