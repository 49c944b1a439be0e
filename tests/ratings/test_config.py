"""Validation of the settings for ratings."""

import pytest
from pydantic import ValidationError

from pets_core.ratings.config import RatingsConfig, RatingsSourceConfig


def test_default_source_is_the_built_in_sample():
    assert RatingsSourceConfig().url is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"valid_fraction": 0.5, "test_fraction": 0.5}, "must stay below 1: lower one"),
        (
            {"valid_fraction": 0, "test_fraction": 0},
            "are both 0: raise one",
        ),
        ({"valid_fraction": 1}, "less than 1"),
        ({"y_range": (5, 1)}, r"y_range = \(5, 1\): the first must be below the second"),
        ({"y_range": (1, 1)}, "the first must be below"),
        (
            {"split": "time", "time_column": None},
            "split = time needs .*: set time_column",
        ),
        ({"items_url": "movies.csv"}, "cannot be used with the built-in sample"),
        ({"name": "../x"}, "should match pattern"),
        ({"seed": True}, "expected a number, not true or false"),
        ({"users_column": "x"}, "Extra inputs are not permitted"),
    ],
)
def test_invalid_settings_are_rejected(settings, message):
    with pytest.raises(ValidationError, match=message):
        RatingsSourceConfig.model_validate(settings)


@pytest.mark.parametrize("held_out", ["valid_fraction", "test_fraction"])
def test_one_held_out_split_is_enough(held_out):
    RatingsSourceConfig.model_validate({"valid_fraction": 0, "test_fraction": 0, held_out: 0.1})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"recommender": {"weight_decays": [0.1, 0.1000000001]}}, "has duplicates: remove"),
        ({"recommender": {"dropout": 0.5}}, "cannot be used with model = dot"),
        (
            {"train": {"label_smoothing": 0.1}},
            "smoothing = 0.1: only for class targets, not for ratings",
        ),
        ({"train": {"freeze_epochs": 1}}, "Input should be 0"),
        ({"train": {"batch_norm": "sync"}}, "Input should be 'frozen'"),
        (
            {"ratings": {"valid_fraction": 0}, "train": {"keep": "best"}},
            "train.keep = best: needs validation ratings, but ratings.valid_fraction is 0",
        ),
        (
            {"ratings": {"valid_fraction": 0}, "recommender": {"weight_decays": [1.0]}},
            "recommender.weight_decays: needs validation ratings",
        ),
        (
            {"launch": {"shard_model": True}, "train": {"ema_decay": 0.9}},
            "launch.shard_model cannot be combined with train.ema_decay",
        ),
    ],
)
def test_settings_invalid_for_ratings_are_rejected(settings, message):
    with pytest.raises(ValidationError, match=message):
        RatingsConfig.model_validate(settings)


def test_automatic_settings_of_a_training_are_resolved():
    config = RatingsConfig.model_validate({"recommender": {"weight_decays": [0.1, 1]}})
    train = config.resolve_auto(has_validation=True, weight_decay=0.1).train
    assert (train.keep, train.weight_decay) == ("best", 0.1)
    alone = config.resolve_auto(has_validation=False)
    assert (alone.train.keep, alone.train.weight_decay) == ("last", 0.3)
    assert alone.recommender.weight_decays == ()
    chosen = {"train": {"keep": "last", "weight_decay": 0}}
    train = RatingsConfig.model_validate(chosen).resolve_auto(has_validation=True).train
    assert (train.keep, train.weight_decay) == ("last", 0)
