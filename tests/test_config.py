"""Settings: every rule refuses what it should, and values survive a round trip."""

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pets_core.config import PipelineConfig
from pets_core.rates import RateSlice


def faults(values: dict) -> list[dict]:
    with pytest.raises(ValidationError) as caught:
        PipelineConfig.model_validate(values)
    return caught.value.errors()


BOUNDS = {
    "source": {
        "kind": ["auto", "sample", "oxford-iiit-pet"],
        "split": ["auto", "official", "random"],
        "valid_fraction": [0, 0.99],
        "test_fraction": [0, 0.85],
        "seed": [0],
        "sample_photos_per_breed": [4, 2000],
        "targets": ["class", "tags", "points", "box"],
        "tag_separator": [None],
        "number_columns": [()],
        "units": [()],
        "y_range": [None],
    },
    "ingest": {
        "shard_mib": [1, 4096],
        "row_group_rows": [1, 10_000],
        "max_quarantined_fraction": [0, 1],
        "num_workers": [0, 10_000],
        "duplicates": ["keep", "drop"],
        "near_duplicate_bits": [0, 16],
        "new_labels": ["refuse", "quarantine", "extend"],
        "runner": ["threads", "processes", "dask", "ray"],
    },
    "model": {"image_size": [32, 1024], "dropout": [0, 0.99]},
    "transform": {
        "flip": [True, False],
        "max_rotate_degrees": [0, 180],
        "max_zoom": [1, 4],
        "max_lighting": [0, 0.99],
        "probability": [0, 1],
        "max_warp": [0, 0.49],
        "min_crop_area": [0.01, 1],
        "erase_probability": [0, 1],
        "mixup_alpha": [0, 100],
        "cutmix_alpha": [0, 100],
    },
    "lr_find": {
        "start_lr": [1e-12],
        "end_lr": [1e-5, 100],
        "num_steps": [10, 10_000],
        "suggestion": ["auto", "minimum", "steepest", "valley", "slide"],
    },
    "train": {
        "freeze_epochs": [0, 10_000],
        "epochs": [0, 10_000],
        "base_lr": [None, 1e-9, 9.99],
        "lr_mult": [1, 1e6],
        "unfrozen_lr_div": [1, 1e6],
        "batch_size": [1, 65_536],
        "weight_decay": [0, 0.99],
        "pct_start": [0.01, 0.99],
        "batch_norm": ["frozen", "train", "sync"],
        "mixed_precision": ["auto", "no", "bf16", "fp16"],
        "freeze_to": [-1, 0, 3],
        "micro_batch_size": [0, 65_536],
        "max_grad_norm": [None, 1e-3],
        "label_smoothing": [0, 0.99],
        "class_weights": ["none", "balanced"],
        "number_loss": ["mse"],
        "ema_decay": [0, 0.9999],
        "early_stopping_epochs": [0, 10_000],
        "keep": ["last", "best"],
        "checkpoint_steps": [1, 1_000_000],
        "keep_checkpoints": [1, 1000],
        "compile": [False, True],
        "tf32": [False, True],
        "log_with": ["none", "tensorboard", "mlflow", "wandb"],
        "seed": [0],
    },
    "evaluate": {
        "split": ["auto", "test", "valid"],
        "batch_size": [1, 65_536],
        "tta_views": [0, 64],
        "most_confused_min_count": [1],
        "threshold": ["shared"],
        "embeddings": [False, True],
    },
    "gate": {
        "promote": [False, True],
        "alias": ["champion", "canary-2"],
        "max_error_rate": [None, 0, 1],
        "min_improvement": [-1, 0, 1],
        "max_drop_per_class": [None, 0, 1],
    },
    "batch": {"part_photos": [1, 1_000_000], "num_tasks": [1, 1000]},
    "embed": {"min_similarity": [1e-6, 0.999]},
    "sweep": {
        "min_lr": [1e-9, 0.0299],
        "max_lr": [0.000301, 9.9],
        "num_trials": [1, 10_000],
        "num_random": [1, 10_000],
        "num_seeds": [1, 100],
        "num_concurrent": [1, 1000],
    },
    "launch": {
        "require_gpu": [True, False],
        "deployment": [None, "rank-stage/gpu"],
        "num_processes": ["auto", 1, 1024],
        "num_threads": [0, 1024],
        "num_machines": [1],
        "rdzv_endpoint": ["gpu-0.local:29500", "10.0.0.1:1"],
        "join_timeout_seconds": [1, 86_400],
        "stall_timeout_seconds": [0.1, 86_400],
        "decode_cache_gib": [0, 100_000],
        "photos_on_gpu": ["auto", "never"],
        "shard_model": [False, True],
    },
}
BEYOND = {
    "source": {
        "kind": ["zip", None],
        "name": ["a/b", "..", "", 3],
        "checksums": [{"a.zip": "crc32:00"}, {"a.zip": "md5:xyz"}, "md5:00"],
        "split": ["half"],
        "valid_fraction": [-0.01, 1, "some"],
        "test_fraction": [-0.01, 1],
        "seed": [-1, 0.5],
        "sample_photos_per_breed": [3, 2001],
        "targets": ["boxes", None],
        "tag_separator": ["", 3],
        "number_columns": [[3], "age"],
        "units": [[3], "kg"],
        "y_range": [[0], ["a", "b"]],
    },
    "ingest": {
        "shard_mib": [0, 4097],
        "row_group_rows": [0, 10_001],
        "max_quarantined_fraction": [-0.01, 1.01],
        "num_workers": [-1, 10_001],
        "duplicates": ["merge"],
        "near_duplicate_bits": [-1, 17],
        "new_labels": ["ignore"],
        "runner": ["spark"],
    },
    "model": {"image_size": [31, 1025, "big"], "dropout": [-0.1, 1], "backbone": [None, 3]},
    "transform": {
        "flip": ["perhaps"],
        "max_rotate_degrees": [-1, 181],
        "max_zoom": [0.99, 4.01],
        "max_lighting": [-0.1, 1],
        "probability": [-0.1, 1.1],
        "max_warp": [-0.1, 0.5],
        "min_crop_area": [0, 1.1],
        "erase_probability": [-0.1, 1.1],
        "mixup_alpha": [-0.1, 101],
        "cutmix_alpha": [-0.1, 101],
    },
    "lr_find": {
        "start_lr": [0, -1],
        "end_lr": [0, float("inf")],
        "num_steps": [9, 10_001],
        "suggestion": ["best"],
    },
    "train": {
        "freeze_epochs": [-1, 10_001],
        "epochs": [-1, 10_001, 1.5],
        "base_lr": [0, 10, float("nan")],
        "lr_mult": [0.9, float("inf")],
        "unfrozen_lr_div": [0.9, float("inf")],
        "batch_size": [0, 65_537],
        "weight_decay": [-0.1, 1],
        "pct_start": [0, 1],
        "batch_norm": ["thaw"],
        "mixed_precision": ["fp8"],
        "seed": [-1],
        "lr_max": ["fast", True, "slice(1e-3, 1e-4)", -1e-3, "slice(-1e-6, 1e-4)"],
        "freeze_to": [0.5, "head"],
        "micro_batch_size": [-1, 65_537],
        "max_grad_norm": [0, -1],
        "label_smoothing": [-0.1, 1],
        "class_weights": ["inverse"],
        "number_loss": ["huber"],
        "ema_decay": [-0.1, 1],
        "early_stopping_epochs": [-1, 10_001],
        "keep": ["first"],
        "checkpoint_steps": [0, 1_000_001],
        "keep_checkpoints": [0, 1001],
        "compile": ["perhaps"],
        "tf32": ["perhaps"],
        "log_with": ["comet"],
    },
    "evaluate": {
        "split": ["train"],
        "batch_size": [0, 65_537],
        "tta_views": [-1, 65],
        "most_confused_min_count": [0],
        "threshold": ["best"],
        "embeddings": ["some"],
    },
    "gate": {
        "promote": ["perhaps"],
        "alias": ["", "a/b", "..", None],
        "max_error_rate": [-0.1, 1.1],
        "min_improvement": [-1.1, 1.1],
        "max_drop_per_class": [-0.1, 1.1],
    },
    "batch": {"part_photos": [0, 1_000_001], "num_tasks": [0, 1001]},
    "embed": {"min_similarity": [0, 1]},
    "sweep": {
        "min_lr": [0, 10],
        "max_lr": [0, 10],
        "num_trials": [0, 10_001],
        "num_random": [0, 10_001],
        "num_seeds": [0, 101],
        "num_concurrent": [0, 1001],
    },
    "launch": {
        "require_gpu": ["maybe"],
        "deployment": ["gpu", "a/b/c", "/gpu"],
        "num_processes": [0, 1025, "many"],
        "num_threads": [-1, 1025],
        "num_machines": [0, 1025],
        "rdzv_endpoint": ["gpu-0", "http://gpu-0:1", "gpu-0:port"],
        "join_timeout_seconds": [0, 86_401],
        "stall_timeout_seconds": [0, 86_401],
        "decode_cache_gib": [-1, 100_001],
        "photos_on_gpu": ["always"],
        "shard_model": ["maybe"],
    },
}


def cases(table: dict) -> list[tuple]:
    return [(g, n, v) for g, names in table.items() for n, values in names.items() for v in values]


@pytest.mark.parametrize(("group", "name", "value"), cases(BOUNDS))
def test_bounds_are_allowed(group, name, value):
    extra = {"valid_fraction": 0.1} if name == "test_fraction" else {}
    config = PipelineConfig.model_validate({group: {name: value, **extra}})
    assert getattr(getattr(config, group), name) == value


@pytest.mark.parametrize(("group", "name", "value"), cases(BEYOND))
def test_beyond_the_bounds_is_refused(group, name, value):
    assert {fault["loc"][:2] for fault in faults({group: {name: value}})} == {(group, name)}


def test_the_bounds_above_cover_every_setting():
    free_text = {
        "url", "backbone", "weights", "lr_max", "name", "checksums", "image_column",
        "label_column", "label_fixes", "split_column", "runner_address", "backbones",
        "push_gateway",
    }  # fmt: skip
    for group, field in PipelineConfig.model_fields.items():
        names = set(getattr(field.annotation, "model_fields", {}))
        assert names - free_text == set(BOUNDS.get(group, {})) - free_text, group


@pytest.mark.parametrize(
    ("values", "group", "words"),
    [
        ({"source": {"valid_fraction": 0.5, "test_fraction": 0.5}}, "source", "must stay below 1"),
        ({"source": {"split": "official", "test_fraction": 0.2}}, "source", "test_fraction = 0.2"),
        ({"source": {"kind": "folder"}}, "source", "kind = folder needs url"),
        ({"source": {"kind": "table"}}, "source", "kind = table needs url"),
        ({"ingest": {"runner_address": "tcp://x:1"}}, "ingest", "set dask or ray"),
        (
            {"source": {"kind": "folder", "url": "x", "split": "official"}},
            "source",
            "set split = random",
        ),
        ({"source": {"kind": "sample", "url": "x"}}, "source", "takes no url"),
        ({"lr_find": {"start_lr": 0.1, "end_lr": 0.1}}, "lr_find", "must be above start_lr"),
        ({"train": {"freeze_epochs": 0, "epochs": 0}}, "train", "nothing would be trained"),
    ],
)
def test_impossible_combinations_are_refused(values, group, words):
    (fault,) = faults(values)
    assert fault["loc"] == (group,)
    assert words in fault["msg"]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"ema_decay": 0.9}, "train.ema_decay = 0.9"),
        ({"batch_norm": "train"}, "train.batch_norm = train"),
        ({"mixed_precision": "fp16"}, "train.mixed_precision = fp16"),
        ({"compile": True}, "train.compile = true"),
    ],
    ids=str,
)
def test_what_a_sharded_model_cannot_do_is_refused(setting, words):
    (fault,) = faults({"launch": {"shard_model": True}, "train": setting})
    assert words in fault["msg"]
    PipelineConfig.model_validate({"train": setting})


def test_unknown_keys_are_refused_at_every_level():
    values = {"stroe": "x"} | {group: {"nonsense": 1} for group in BOUNDS}
    found = faults(values)
    assert {fault["type"] for fault in found} == {"extra_forbidden"}
    assert {fault["loc"][0] for fault in found} == set(values)


def test_all_faults_are_told_at_once():
    found = faults({"train": {"epochs": -1, "batch_size": 0}, "ingest": {"shard_mib": 0}})
    assert len(found) == 3


def test_settings_are_frozen():
    with pytest.raises(ValidationError):
        PipelineConfig().train.epochs = 5


def test_defaults_are_valid_and_described():
    PipelineConfig.model_validate(PipelineConfig().model_dump())
    schema = PipelineConfig.model_json_schema()
    groups = {"PipelineConfig": schema, **schema["$defs"]}
    for name, group in groups.items():
        for setting, about in group["properties"].items():
            if "$ref" not in about and about.get("default", {}) != {}:
                assert about.get("description"), f"{name}.{setting}"
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
def test_rate_slices_are_read(text, lo, hi, uniform):
    rates = RateSlice.parse(text)
    assert (rates.lo, rates.hi, rates.uniform) == (lo, hi, uniform)
    assert RateSlice.parse(rates) is rates


@pytest.mark.parametrize(
    ("value", "words"),
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
def test_other_rate_slices_are_refused(value, words):
    with pytest.raises(ValueError, match=words):
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
    again = PipelineConfig.model_validate(yaml.safe_load(text)).train.lr_max
    assert (again.lo, again.hi, again.uniform) == (rates.lo, rates.hi, rates.uniform)
    assert hash(again) == hash(rates)


def test_no_in_yaml_is_not_false() -> None:
    settings = yaml.safe_load("train: {mixed_precision: no}")
    assert PipelineConfig.model_validate(settings).train.mixed_precision == "no"
