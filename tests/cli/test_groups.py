"""Values for a whole group of settings, by flag, environment variable and YAML file."""

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
    (arguments, group)
    for kind, commands in COMMANDS.items()
    for arguments in commands
    for group in settings_groups.groups(kind)
]


@pytest.mark.parametrize(("arguments", "group"), EVERY_GROUP)
def test_group_flag_rejects_a_scalar_in_every_command(refused, arguments, group):
    for flags in ([f"--{group}", "some/value"], [f"--{group}=some/value"]):
        (line,) = refused(*arguments, *flags)
        assert line.startswith(f"--{group} some/value: {group} is a group of settings. ")
        assert f"--{group}." in line


@pytest.mark.parametrize(
    ("command", "group", "value", "hint"),
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
def test_scalar_for_a_group_flag_suggests_the_likely_flag(refused, command, group, value, hint):
    (line,) = refused(command, f"--{group}", value)
    assert line.endswith(f"Did you mean {hint}?")


@pytest.mark.parametrize("value", ["fast", "", "null", "[1, 2]", "epochs.yaml"])
def test_scalar_for_a_group_flag_lists_examples_if_no_field_fits(refused, value):
    (line,) = refused("train", f"--train={value}")
    assert line.endswith("such as --train.recipe, --train.head, --train.freeze_epochs")


def test_group_flag_without_a_value_is_rejected(refused):
    (line,) = refused("run", "--gate")
    assert line.startswith("--gate: gate is a group of settings.")


def test_all_group_errors_are_reported(refused, monkeypatch):
    monkeypatch.setenv("PETS_TRAIN", "3")
    monkeypatch.setenv("PETS_TRIAN__EPOCHS", "3")  # codespell:ignore trian
    lines = refused("run", "--model", "resnet18", "--source", "photos")
    assert len(lines) == 4


def test_groups_accept_json_objects(started, monkeypatch):
    config = started("run", "--model", '{"backbone": "resnet18"}', "--model.dropout", 0.2)
    assert (config.model.backbone, config.model.dropout) == ("resnet18", 0.2)
    monkeypatch.setenv("PETS_TRAIN", '{"epochs": 7}')
    monkeypatch.setenv("PETS_TRAIN__SEED", "8")
    config = started("run", "--train.batch_size", 9)
    assert (config.train.epochs, config.train.seed, config.train.batch_size) == (7, 8, 9)


@pytest.mark.parametrize("group", PHOTO_GROUPS)
def test_malformed_json_and_unknown_fields_of_a_group_are_rejected(refused, monkeypatch, group):
    (line,) = refused("run", f"--{group}", '{"a": 1')
    assert line.startswith(f'--{group} {{"a": 1: not a JSON object: ')
    assert refused("run", f"--{group}", '{"a": 1}')[0].startswith(f"{group}.a: no such setting.")
    variable = f"PETS_{group}".upper()
    monkeypatch.setenv(variable, '{"a": 1')
    (line,) = refused("run")
    assert line.startswith(f'{variable} = {{"a": 1: not a JSON object: ')


@pytest.mark.parametrize("group", PHOTO_GROUPS)
@pytest.mark.parametrize("value", ["some/value", "3", "null", "[1]"])
def test_group_variable_rejects_a_scalar(refused, monkeypatch, group, value):
    variable = f"PETS_{group}".upper()
    monkeypatch.setenv(variable, value)
    (line,) = refused("run")
    assert line.startswith(f"{variable} = {value}: {group} is a group of settings. ")
    assert f"{variable}__" in line


def test_scalar_for_a_group_variable_suggests_the_likely_variable(refused, monkeypatch):
    monkeypatch.setenv("pets_model", "resnet18")
    (line,) = refused("run")
    assert line.endswith("Did you mean PETS_MODEL__BACKBONE=resnet18?")


@pytest.mark.parametrize("group", PHOTO_GROUPS)
@pytest.mark.parametrize(
    ("content", "shown"),
    [("some/value", "'some/value'"), ("", "null"), ("[a, b]", "['a', 'b']"), ("-3", "-3")],
)
def test_group_in_a_yaml_file_must_be_a_mapping(refused, tmp_path, group, content, shown):
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
def test_malformed_lists_and_mappings_are_rejected(refused, monkeypatch, flag, value, expected):
    assert refused("run", f"--{flag}", value) == [f"--{flag} {value}: expected {expected}"]
    variable = f"PETS_{flag.replace('.', '__')}".upper()
    monkeypatch.setenv(variable, value)
    (line,) = refused("run")
    assert line.startswith(f"{variable} = {value}: expected JSON, such as ")
