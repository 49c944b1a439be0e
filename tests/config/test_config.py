"""Settings: validators reject invalid combinations, and values survive a round trip."""

import json
import runpy
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pets_core.config.pipeline import PipelineConfig
from pets_core.config.rates import RateSlice
from pets_core.config.train import TrainConfig


def errors(values: dict) -> list[dict]:
    with pytest.raises(ValidationError) as caught:
        PipelineConfig.model_validate(values)
    return caught.value.errors()


GROUPS = {
    name: field.annotation
    for name, field in PipelineConfig.model_fields.items()
    if hasattr(field.annotation, "model_fields")
}
NUMBERS = [
    (group, name)
    for group, model in GROUPS.items()
    for name, field in model.model_json_schema()["properties"].items()
    if "number" in (branch.get("type") for branch in (field, *field.get("anyOf", ())))
]


def test_settings_page_is_up_to_date():
    """The page also pins type, default and bounds of each setting."""
    root = Path(__file__).parents[2]
    page = runpy.run_path(str(root / "docs/settings.py"))["settings_page"]()
    written = (root / "docs/settings.md").read_text()
    assert page == written, "run python docs/settings.py and review the diff"


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_infinite_and_nan_numbers_are_rejected(value):
    assert len(NUMBERS) > 20
    for group, name in NUMBERS:
        assert {error["loc"][:2] for error in errors({group: {name: value}})} == {(group, name)}


@pytest.mark.parametrize(
    ("values", "group", "message"),
    [
        ({"source": {"valid_fraction": 0.5, "test_fraction": 0.5}}, "source", "must stay below 1"),
        ({"source": {"split": "official", "test_fraction": 0.2}}, "source", "test_fraction = 0.2"),
        ({"source": {"kind": "folder"}}, "source", "kind = folder needs url"),
        ({"source": {"kind": "table"}}, "source", "kind = table needs url"),
        ({"ingest": {"runner_address": "tcp://x:1"}}, "ingest", "set runner = dask or ray"),
        ({"cache_dir": "s3://bucket/cache"}, "cache_dir", "set the path of a local folder"),
        ({"cache_dir": "file:///tmp/cache"}, "cache_dir", "set the path of a local folder"),
        ({"source": {"tag_columns": ["a", "b"]}}, "source", "set targets = tags"),
        ({"source": {"group_column": "a", "group_pattern": "b"}}, "source", "remove one"),
        ({"source": {"group_pattern": "("}}, "source", "not a regular expression"),
        ({"source": {"kind": "sample", "url": "x"}}, "source", "takes no url"),
        ({"lr_find": {"start_lr": 0.1, "end_lr": 0.1}}, "lr_find", "must be above start_lr"),
        ({"train": {"freeze_epochs": 0, "epochs": 0}}, "train", "set freeze_epochs or epochs"),
        ({"train": {"recipe": "probe", "epochs": 1}}, "train", "epochs = 1: recipe = probe only"),
        ({"train": {"recipe": "probe", "freeze_epochs": 2}}, "train", "freeze_epochs = 2: recipe"),
        ({"train": {"recipe": "probe", "head": "new"}}, "train", "head = new: recipe = probe only"),
        ({"train": {"head": "probe", "epochs": 0}}, "train", "set freeze_epochs or epochs"),
    ],
)
def test_invalid_combinations_are_rejected(values, group, message):
    (error,) = errors(values)
    assert error["loc"] == (group,)
    assert message in error["msg"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"ema_decay": 0.9}, "train.ema_decay = 0.9"),
        ({"batch_norm": "train"}, "train.batch_norm = train"),
        ({"mixed_precision": "fp16"}, "train.mixed_precision = fp16"),
        ({"compile": True}, "train.compile = true"),
    ],
    ids=str,
)
def test_settings_that_a_sharded_model_does_not_support_are_rejected(setting, message):
    (error,) = errors({"launch": {"shard_model": True}, "train": setting})
    assert message in error["msg"]
    PipelineConfig.model_validate({"train": setting})


@pytest.mark.parametrize(
    ("train", "starts_from_probe", "num_frozen", "num_unfrozen"),
    [
        ({}, False, 1, 2),
        ({"recipe": "probe"}, True, 0, 0),
        ({"head": "probe"}, True, 0, 2),
        ({"head": "probe", "freeze_epochs": 3, "epochs": 4}, True, 3, 4),
        ({"epochs": 5}, False, 1, 5),
    ],
)
def test_empty_epochs_follow_from_recipe_and_head(
    train, starts_from_probe, num_frozen, num_unfrozen
):
    config = TrainConfig(**train)
    assert config.starts_from_probe == starts_from_probe
    assert (config.num_frozen_epochs, config.num_unfrozen_epochs) == (num_frozen, num_unfrozen)
    assert TrainConfig.model_validate(config.model_dump()) == config


def test_unknown_keys_are_rejected_at_every_level():
    values = {"nonsense": "x"} | {group: {"nonsense": 1} for group in GROUPS}
    found = errors(values)
    assert {error["type"] for error in found} == {"extra_forbidden"}
    assert {error["loc"][0] for error in found} == set(values)


def test_all_errors_are_reported_at_once():
    found = errors({"train": {"epochs": -1, "batch_size": -1}, "ingest": {"shard_mib": 0}})
    assert len(found) == 3


def test_settings_are_frozen():
    with pytest.raises(ValidationError):
        PipelineConfig().train.epochs = 5


def test_defaults_are_valid_and_described():
    PipelineConfig.model_validate(PipelineConfig().model_dump())
    schema = PipelineConfig.model_json_schema()
    groups = {"PipelineConfig": schema, **schema["$defs"]}
    for name, group in groups.items():
        for setting, field in group["properties"].items():
            if "$ref" not in field and field.get("default", {}) != {}:
                assert field.get("description"), f"{name}.{setting}"
    json.dumps(schema)


@pytest.mark.parametrize(
    ("text", "lo", "hi", "uniform"),
    [
        ("slice(1e-6, 1e-4)", 1e-6, 1e-4, False),
        (" slice( 1e-6 ,1e-4 ) ", 1e-6, 1e-4, False),
        ("slice(1e-4, 1e-4)", 1e-4, 1e-4, False),
        ("slice(3e-3)", None, 3e-3, False),
        ("3e-3", None, 3e-3, True),
        (0.003, None, 3e-3, True),
        (1, None, 1.0, True),
    ],
)
def test_rate_slices_are_parsed(text, lo, hi, uniform):
    rates = RateSlice.parse(text)
    assert (rates.lo, rates.hi, rates.uniform) == (lo, hi, uniform)
    assert RateSlice.parse(rates) is rates


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("slice()", "expected a number"),
        ("slice(1e-6, 1e-4, 3)", "expected a number"),
        ("slice(None, 1e-3)", "expected a number"),
        ("slice(1e-6; 1e-4)", "expected a number"),
        ("", "expected a number"),
        (True, "expected a number"),
        ([1e-6, 1e-4], "expected a number"),
        (None, "expected a number"),
        ("slice(1e-3, 1e-4)", "reversed"),
        ("slice(0, 1e-4)", "above 0"),
        ("slice(-1e-4)", "above 0"),
        (0, "above 0"),
        ("inf", "finite"),
        ("nan", "finite"),
        ("slice(nan, 1)", "finite"),
    ],
)
def test_invalid_rate_slices_are_rejected(value, message):
    with pytest.raises(ValueError, match=message):
        RateSlice.parse(value)


rates = st.floats(1e-12, 1e3)


@given(
    st.one_of(
        st.builds(RateSlice, rates),
        st.builds(lambda hi: RateSlice(hi, uniform=True), rates),
        st.tuples(rates, rates).map(lambda pair: RateSlice(max(pair), min(pair))),
    )
)
def test_rate_slices_survive_json_and_yaml(rates):
    config = PipelineConfig.model_validate({"train": {"lr_max": rates}})
    assert PipelineConfig.model_validate_json(config.model_dump_json()) == config
    text = yaml.safe_dump(config.model_dump(mode="json"))
    loaded = PipelineConfig.model_validate(yaml.safe_load(text)).train.lr_max
    assert (loaded.lo, loaded.hi, loaded.uniform) == (rates.lo, rates.hi, rates.uniform)
    assert hash(loaded) == hash(rates)


def test_yaml_no_is_read_as_text() -> None:
    settings = yaml.safe_load("train: {mixed_precision: no}")
    assert PipelineConfig.model_validate(settings).train.mixed_precision == "no"
