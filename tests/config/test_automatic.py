"""The automatic recipe by number of samples and kind of target."""

import pytest

from pets_core.config.automatic import (
    automatic_batch_size,
    resolve_automatic,
    resolve_recipe,
)
from pets_core.config.pipeline import PipelineConfig
from pets_core.config.train import TrainConfig
from pets_core.records.dataset import DatasetManifest, SplitInfo
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
    recipe = resolve_recipe(TrainConfig(), CLASS, 640)
    assert (recipe.head, recipe.freeze_epochs, recipe.epochs) == ("new", 1, 2)
    assert (recipe.batch_size, recipe.lr_mult, recipe.unfrozen_lr_div) == (64, 100.0, 5.0)


@pytest.mark.parametrize(
    "settings",
    [
        {"freeze_epochs": 1},
        {"freeze_to": -2},
        {"head": "new"},
        {"epochs": 0},
        {"sampling": "balanced"},
    ],
)
def test_small_data_set_starts_from_a_probe_unless_settings_conflict(settings):
    assert resolve_recipe(TrainConfig(), CLASS, 499).head == "probe"
    recipe = resolve_recipe(TrainConfig.model_validate(settings), CLASS, 499)
    assert (recipe.head, recipe.freeze_epochs) == ("new", 1)


@pytest.mark.parametrize(
    ("settings", "first"), [({}, 0), ({"unfreeze_to": 3}, 3)], ids=["automatic", "set"]
)
def test_all_random_layers_are_trained(settings, first):
    config = PipelineConfig.model_validate({"train": settings, "model": {"weights": "none"}})
    manifest = DatasetManifest.model_construct(
        targets="class", splits={"train": SplitInfo.model_construct(num_rows=2000)}
    )
    assert resolve_automatic(config, manifest).train.unfreeze_to == first
    pretrained = PipelineConfig.model_validate({"train": settings})
    assert resolve_automatic(pretrained, manifest).train.unfreeze_to == settings.get("unfreeze_to")


@pytest.mark.parametrize(
    ("settings", "num_test", "head"),
    [
        ({}, 10, "probe"),
        ({"model": {"weights": "none"}}, 10, "new"),
        ({"launch": {"decode_cache_gib": 0}}, 10, "new"),
        ({"launch": {"decode_cache_gib": 2}}, 10, "probe"),
        ({}, 60_000, "new"),
        ({"model": {"weights": "none"}, "train": {"recipe": "probe"}}, 10, "probe"),
    ],
)
def test_probe_is_chosen_only_where_it_can_be_fitted(settings, num_test, head):
    """With random weights its features are noise; large features do not fit in the cache."""
    splits = {
        split: SplitInfo(num_rows=count, class_counts=(), shards=())
        for split, count in (("train", 200), ("test", num_test))
    }
    manifest = DatasetManifest(
        name="photos", fingerprint="a", url="", source_url="", vocabulary=(), splits=splits,
        num_quarantined=0, quarantine_reasons={},
    )  # fmt: skip
    resolved = resolve_automatic(PipelineConfig.model_validate(settings), manifest)
    assert resolved.train.starts_from_probe == (head == "probe")
    assert resolve_automatic(resolved, manifest) == resolved


def test_epochs_are_limited():
    assert resolve_recipe(TrainConfig(), BOX, 3).epochs == 50


def test_balanced_sampling_is_refused_with_a_probe():
    with pytest.raises(ValueError, match="sampling = balanced cannot be used with a probe"):
        TrainConfig(head="probe", sampling="balanced")


def test_probe_recipe_has_no_epochs():
    recipe = resolve_recipe(TrainConfig(recipe="probe"), BOX, 200)
    assert (recipe.starts_from_probe, recipe.num_epochs) == (True, 0)


@pytest.mark.parametrize(
    ("spec", "num_rows", "epochs", "div", "mult"),
    [
        (CLASS, 200, 2, 50.0, 100.0),
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
