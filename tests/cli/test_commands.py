"""Commands: help, examples, flags, schema, completion, doctor."""

import json
import os
import platform
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import jsonschema
import pytest

from pets.cli import flow_command
from pets.cli import main as cli
from pets.cli.commands import COMMANDS, GROUP_EXAMPLES
from pets.cli.config import LISTED_RESULTS, RESULTS
from pets.cli.doctor import Check
from pets.cli.settings import setting_names
from pets_core.config.pipeline import PipelineConfig
from pets_core.data.ingest.commit import ingest
from pets_core.ratings.config import RatingsConfig

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("own_environment")


@pytest.mark.parametrize("command", [name for name, each in COMMANDS.items() if each.groups])
def test_help_fits_on_a_screen_and_shows_the_groups_of_the_command(capsys, command):
    assert len(help_of(capsys, command).splitlines()) <= 60
    text = help_of(capsys, command)
    for group in COMMANDS[command].groups:
        assert re.search(rf"^  {group} ", text, re.M), group
    for group, settings in GROUP_EXAMPLES.items():
        for setting in settings:
            shown = f"--{group}.{setting}" in text.partition("examples:")[0]
            assert shown == (group in COMMANDS[command].groups)


def help_of(capsys, command) -> str:
    with pytest.raises(SystemExit) as caught:
        cli.main(["help", command])
    assert caught.value.code == 0
    return capsys.readouterr().out


def test_settings_in_the_help_exist():
    known = {*setting_names(PipelineConfig), *setting_names(RatingsConfig)}
    for name, fields in GROUP_EXAMPLES.items():
        assert {f"{name}.{field}" for field in fields} <= known


@pytest.mark.parametrize(
    "words", [[name, *shlex.split(text)] for name, c in COMMANDS.items() for text in c.examples]
)
def test_examples_of_the_help_are_valid(words, monkeypatch, tmp_path):
    """A later error, such as a missing model, shows that arguments and settings are valid."""
    monkeypatch.chdir(tmp_path)
    stored = {"ratings": {}} if words[0] == "collab" else {}
    monkeypatch.setattr("pets_core.runtime.runs.load_run_settings", lambda _: stored)
    monkeypatch.setattr(flow_command, "_find_run", lambda parsed: parsed.resume)
    started = []
    monkeypatch.setattr(flow_command, "_check_input", lambda *_: None)
    monkeypatch.setattr(flow_command, "_check_ratings", lambda *_: None)
    monkeypatch.setattr(flow_command, "start_flow", lambda *_: started.append(words))
    monkeypatch.setattr("pets_core.runtime.multi_node.join", lambda *_, **__: started.append(words))
    if not COMMANDS[words[0]].groups:
        module = import_module(f"pets.cli.{words[0]}")
        monkeypatch.setattr(module, "run_command", started.append)
    cli.main(words)
    assert started


def test_flags_accept_dashes_for_underscores(started):
    config = started(
        "run", "--lr-find.num-steps=50", "--no-lr-find.on-features", "--cache-dir", "c"
    )
    assert (config.lr_find.num_steps, config.lr_find.on_features) == (50, False)
    assert config.cache_dir == "c"
    assert started("run", "--source.class-folder", "first").source.class_folder == "first"


def test_config_file_may_be_given_by_a_flag(started, refused, tmp_path):
    (tmp_path / "a.yaml").write_text("train: {epochs: 9}")
    assert started("run", "--config", tmp_path / "a.yaml").train.epochs == 9
    assert "remove one of them" in refused("run", "a.yaml", "--config", "b.yaml")[0]


def test_printed_config_is_a_settings_file(started, capsys, tmp_path):
    cli.main(["run", "--train.lr_max", "slice(1e-6,3e-4)", "--print-config"])
    (tmp_path / "a.yaml").write_text(capsys.readouterr().out)
    assert started.calls == []
    assert (
        started("run", tmp_path / "a.yaml").train.lr_max
        == started("run", "--train.lr_max", "slice(1e-6,3e-4)").train.lr_max
    )


@pytest.mark.parametrize(
    ("flags", "level"),
    [([], None), (["-v"], "DEBUG"), (["-q"], "WARNING"), (["--log-level", "error"], "ERROR")],
)
def test_log_level_is_set_for_prefect(started, monkeypatch, flags, level):
    monkeypatch.delenv("PREFECT_LOGGING_LEVEL", raising=False)
    started("run", *flags)
    assert os.environ.get("PREFECT_LOGGING_LEVEL") == level
    monkeypatch.delenv("PREFECT_LOGGING_LEVEL", raising=False)


@pytest.mark.parametrize("flags", [[], ["--ratings"]])
def test_config_schema_validates_settings_files(capsys, flags):
    cli.main(["config", "schema", *flags])
    validator = jsonschema.Draft202012Validator(json.loads(capsys.readouterr().out))
    assert not list(validator.iter_errors({"train": {"epochs": 3}, "store": "s"}))
    assert list(validator.iter_errors({"train": {"epochs": -3}}))
    assert list(validator.iter_errors({"train": {"epcohs": 3}}))
    assert bool(list(validator.iter_errors({"ratings": {}}))) == (not flags)


@pytest.mark.parametrize("command", [*RESULTS, *LISTED_RESULTS])
def test_every_result_has_a_schema(capsys, command):
    cli.main(["config", "schema", "--result", command])
    schema = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["type"] == ("array" if command in LISTED_RESULTS else "object")


def test_every_flow_prints_a_result_with_a_schema():
    assert set(RESULTS) >= {name for name, command in COMMANDS.items() if command.flow}


@pytest.mark.parametrize("command", ["doctor", "gc", "datasets list", "models list"])
def test_json_output_is_valid_for_its_schema(capsys, command, small_config):
    ingest(small_config)
    store = ["--store", small_config.store]
    cli.main(["config", "schema", "--result", command])
    schema = json.loads(capsys.readouterr().out)
    cli.main([*command.split(), *store, "--json"])
    result = json.loads(capsys.readouterr().out)
    assert bool(result) == (command in ("doctor", "datasets list"))
    jsonschema.Draft202012Validator(schema).validate(result)


def test_schema_of_an_unknown_command_is_rejected(refused):
    (line,) = refused("config", "schema", "--result", "ui")
    assert line.startswith("--result ui: use one of run, evaluate")


COMPLETE = """
complete_last() {
    COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
    _shtab_pets pets "${@: -1}" ""
}
"""
COMPLETED = {
    "batch": "batch-predict",
    "run --train.unf": "--train.unfrozen_lr_div --train.unfreeze_to",
    "run --lr_find.suggestion ''": "auto limited minimum slide steepest valley",
    "train --train.recipe p": "probe",
    "collab --recommender.model ''": "dot neural",
    "models ''": "list show promote rollback",
    "models promote --al": "--alias",
}
"""What bash offers for the last word."""


def test_completion_knows_commands_and_settings(capsys):
    cli.main(["completion", "bash"])
    script = capsys.readouterr().out
    for typed in COMPLETED:
        script += f"COMPREPLY=(); complete_last pets {typed}; echo ${{COMPREPLY[@]}}\n"
    done = subprocess.run(
        ["bash"], input=COMPLETE + script, text=True, capture_output=True, check=True
    )
    assert done.stderr == ""
    assert dict(zip(COMPLETED, done.stdout.splitlines(), strict=True)) == COMPLETED


def test_doctor_checks_this_machine(tmp_path):
    folders = ["--store", str(tmp_path / "store"), "--cache_dir", str(tmp_path / "cache")]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    done = subprocess.run(
        [sys.executable, "-m", "pets", "doctor", *folders, "--json"], capture_output=True,
        check=True, cwd=ROOT, env=environment | {"PREFECT_HOME": str(tmp_path / "prefect")},
    )  # fmt: skip
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert {check["state"] for check in checks.values()} == {"ok"}
    assert f"Python {platform.python_version()}" in checks["versions"]["detail"]
    assert checks["store"]["detail"].startswith(f"{tmp_path}/store: writable")
    assert "none configured" in checks["server"]["detail"]


def test_doctor_checks_the_default_cache_if_the_variable_is_empty(monkeypatch, capsys):
    monkeypatch.setattr("pets.cli.doctor._checks", lambda store, cache_dir: [
        Check("cache_dir", "ok", cache_dir)
    ])  # fmt: skip
    monkeypatch.setenv("PETS_CACHE_DIR", "")
    cli.main(["doctor", "--json"])
    (check,) = json.loads(capsys.readouterr().out)
    assert check["detail"] == PipelineConfig().cache_dir


def test_doctor_fails_if_a_folder_cannot_be_written(capsys, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as caught:
        cli.main(["doctor", "--store", str(tmp_path / "file/store"), "--cache_dir", str(tmp_path)])
    assert caught.value.code == 1
    assert re.search(r"^error +store +store = .*/file/store: cannot be written",
                     capsys.readouterr().out, re.M)  # fmt: skip


def test_reader_that_closes_the_output_is_no_error():
    command = f"{sys.executable} -m pets completion bash | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], cwd=ROOT, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
