"""Values where a group of settings is expected: by flag, by variable and in a YAML file."""

import pytest

from pets.cli import groups as settings_groups
from pets_core.config.pipeline import PipelineConfig
from pets_core.ratings.config import RatingsConfig

COMMANDS = {
    PipelineConfig: [
        ("run",), ("ingest",), ("lr-find",), ("train",), ("sweep",), ("evaluate", "model"),
        ("evaluate", "--from", "p.parquet"), ("batch-predict", "model"), ("embed", "model"),
        ("join",),
    ],
    RatingsConfig: [("collab",)],
}  # fmt: skip
PHOTO_GROUPS = sorted(settings_groups.groups(PipelineConfig))
EVERY_GROUP = [
    (words, group)
    for kind, commands in COMMANDS.items()
    for words in commands
    for group in settings_groups.groups(kind)
]


@pytest.mark.parametrize(("words", "group"), EVERY_GROUP)
def test_no_command_takes_a_scalar_for_a_group(refused, words, group):
    for flags in ([f"--{group}", "some/value"], [f"--{group}=some/value"]):
        (line,) = refused(*words, *flags)
        assert line.startswith(f"--{group} some/value: {group} is a group of settings. ")
        assert f"--{group}." in line


@pytest.mark.parametrize(
    ("command", "group", "value", "meant"),
    [
        ("run", "model", "resnet18", "--model.backbone resnet18"),
        ("run", "model", "3", "--model.backbone 3"),
        ("run", "source", "photos", "--source.url photos"),
        ("run", "source", "my photos", "--source.url 'my photos'"),
        ("run", "source", "oxford-iiit-pet", "--source.kind oxford-iiit-pet"),
        ("train", "train", "3", "--train.epochs 3"),
        ("train", "train", "epochs=3", "--train.epochs 3"),
        ("train", "train", "epochs", "--train.epochs"),
        ("sweep", "sweep", "20", "--sweep.num_trials 20"),
        ("run", "launch", "2", "--launch.num_processes 2"),
        ("run", "gate", "best", "--gate.alias best"),
        ("run", "transform", "flip", "--transform.flip"),
        ("evaluate", "evaluate", "valid", "--evaluate.split valid"),
        ("collab", "ratings", "u.data", "--ratings.url u.data"),
        ("collab", "recommender", "neural", "--recommender.model neural"),
    ],
)
def test_the_flag_that_was_probably_meant(refused, command, group, value, meant):
    (line,) = refused(command, f"--{group}", value)
    assert line.endswith(f"Did you mean {meant}?")


@pytest.mark.parametrize("value", ["fast", "", "null", "[1, 2]", "epochs.yaml"])
def test_examples_where_no_field_fits(refused, value):
    (line,) = refused("train", f"--train={value}")
    assert line.endswith("such as --train.freeze_epochs, --train.epochs, --train.base_lr")


def test_a_group_without_a_value_is_refused(refused):
    (line,) = refused("run", "--gate")
    assert line.startswith("--gate: gate is a group of settings.")


def test_the_main_fields_exist():
    known = settings_groups.groups(PipelineConfig) | settings_groups.groups(RatingsConfig)
    for group, field in settings_groups._MAIN_FIELDS.items():
        assert field in known[group].model_fields


def test_all_faults_of_groups_are_listed(refused, monkeypatch):
    monkeypatch.setenv("PETS_TRAIN", "3")
    monkeypatch.setenv("PETS_TRIAN__EPOCHS", "3")
    lines = refused("run", "--model", "resnet18", "--source", "photos")
    assert len(lines) == 4


def test_groups_as_json_objects(started, monkeypatch):
    config = started("run", "--model", '{"backbone": "resnet18"}', "--model.dropout", 0.2)
    assert (config.model.backbone, config.model.dropout) == ("resnet18", 0.2)
    monkeypatch.setenv("PETS_TRAIN", '{"epochs": 7}')
    monkeypatch.setenv("PETS_TRAIN__SEED", "8")
    config = started("run", "--train.batch_size", 9)
    assert (config.train.epochs, config.train.seed, config.train.batch_size) == (7, 8, 9)


@pytest.mark.parametrize("group", PHOTO_GROUPS)
def test_a_json_object_that_is_broken_or_has_unknown_fields(refused, monkeypatch, group):
    (line,) = refused("run", f"--{group}", '{"a": 1')
    assert line.startswith(f'--{group} {{"a": 1: not a JSON object: ')
    assert refused("run", f"--{group}", '{"a": 1}')[0].startswith(f"{group}.a: no such setting.")
    variable = f"PETS_{group}".upper()
    monkeypatch.setenv(variable, '{"a": 1')
    (line,) = refused("run")
    assert line.startswith(f'{variable} = {{"a": 1: not a JSON object: ')


@pytest.mark.parametrize("group", PHOTO_GROUPS)
@pytest.mark.parametrize("value", ["some/value", "", "3", "null", "[1]"])
def test_no_variable_of_a_group_takes_a_scalar(refused, monkeypatch, group, value):
    variable = f"PETS_{group}".upper()
    monkeypatch.setenv(variable, value)
    (line,) = refused("run")
    about = f"{variable} = {value}" if value else variable
    assert line.startswith(f"{about}: {group} is a group of settings. ")
    assert f"{variable}__" in line


def test_the_variable_that_was_probably_meant(refused, monkeypatch):
    monkeypatch.setenv("pets_model", "resnet18")
    (line,) = refused("run")
    assert line.endswith("Did you mean PETS_MODEL__BACKBONE=resnet18?")


@pytest.mark.parametrize("group", PHOTO_GROUPS)
@pytest.mark.parametrize(
    ("content", "shown"),
    [("some/value", "'some/value'"), ("", "null"), ("[a, b]", "['a', 'b']"), ("-3", "-3")],
)
def test_no_group_in_a_file_is_a_scalar(refused, tmp_path, group, content, shown):
    (tmp_path / "a.yaml").write_text(f"{group}: {content}\n")
    (line,) = refused("run", tmp_path / "a.yaml")
    assert line.startswith(f"{group} = {shown}: {group} is a group of settings. ")
    assert f" {group}." in line


@pytest.mark.parametrize(
    ("flag", "value", "expected"),
    [
        ("source.checksums", "abc", "NAME=VALUE or a JSON object"),
        ("source.checksums", '{"a": "md5:0"', "NAME=VALUE or a JSON object"),
        ("source.number_columns", '["a"', "comma-separated values or a JSON list"),
        ("sweep.backbones", '["resnet18"', "comma-separated values or a JSON list"),
    ],
)
def test_a_list_or_mapping_that_cannot_be_read(refused, monkeypatch, flag, value, expected):
    assert refused("run", f"--{flag}", value) == [f"--{flag} {value}: expected {expected}"]
    variable = f"PETS_{flag.replace('.', '__')}".upper()
    monkeypatch.setenv(variable, value)
    (line,) = refused("run")
    assert line.startswith(f"{variable} = {value}: expected JSON, such as ")
