"""Command line without a server: settings and their errors, `pets predict`, help, imports."""

import json
import re
import subprocess
import sys
from pathlib import Path

# At collection, because its console handler keeps the stderr of the moment, which a test closes.
import prefect.main  # noqa: F401
import pytest
from tiny_model import promote_model, write_tiny_model

from pets.cli import flow_command
from pets.cli import main as cli
from pets.cli.settings import setting_names
from pets_core.config.pipeline import PipelineConfig
from pets_core.records.dataset import DatasetManifest, Run
from pets_core.records.evaluation import Metric
from pets_core.registry.aliases import Candidate

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("own_environment")


def test_no_arguments_use_the_defaults(started):
    assert started("run") == PipelineConfig()
    assert type(started.calls[-1][1]) is PipelineConfig


def test_each_command_accepts_settings(started):
    for command in ("run", "ingest", "lr-find", "train"):
        assert started(command, "--train.epochs", 7).train.epochs == 7
        assert started.calls[-1][0] == command


def test_evaluate_accepts_a_model_and_settings(started, tmp_path):
    (tmp_path / "a.yaml").write_text("evaluate: {split: valid}")
    config = started("evaluate", "some/model", tmp_path / "a.yaml", "--model.image_size=64")
    assert started.calls[-1][2].model_url == "some/model"
    assert (config.evaluate.split, config.model.image_size) == ("valid", 64)
    assert config.model.backbone == PipelineConfig().model.backbone


def test_embed_accepts_a_model_a_dataset_and_settings(started):
    config = started("embed", "some/model", "--dataset", "3fa9", "--embed.min_similarity", 0.9)
    command, _, parsed = started.calls[-1]
    assert (command, parsed.model_url, parsed.dataset) == ("embed", "some/model", "3fa9")
    assert config.embed.min_similarity == 0.9


def test_evaluate_requires_a_model_or_predictions(refused):
    (line,) = refused("evaluate")
    assert "MODEL" in line
    assert "--from" in line


def test_evaluate_help_shows_the_model_as_optional(capsys):
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "--help"])
    assert re.search(r"\[MODEL\]", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "nope"], "nope is not a model folder"),
        (["embed", "nope"], "nope is not a model folder"),
        (["evaluate", "--from", "nope.parquet"], "nope.parquet does not exist"),
        (["run", "--source.url", "nope"], "source.url = nope: no such folder, archive or table"),
        (["train", "--source.url", "nope.zip"], "source.url = nope.zip: no such"),
    ],
)
def test_missing_inputs_are_rejected_before_prefect_starts(refused, arguments, message):
    assert message in refused(*arguments)[0]


def test_ui_rejects_unknown_runs(refused):
    assert refused("ui", "nonsense")[0].startswith("nonsense: no such run in pets-store")


def test_evaluate_accepts_predictions_instead_of_a_model(started, tmp_path):
    (tmp_path / "a.yaml").write_text("gate: {max_error_rate: 0.1}")
    for flags in (["--from", "p.parquet"], ["--from=p.parquet"]):
        config = started("evaluate", *flags, tmp_path / "a.yaml")
        command, _, parsed = started.calls[-1]
        assert (command, parsed.predictions_url) == ("evaluate-predictions", "p.parquet")
        assert config.gate.max_error_rate == 0.1


def test_boolean_flags_reject_a_value(refused):
    (line,) = refused("run", "--gate.promote", "true")
    assert line == "true: boolean settings take no value. Use --NAME or --no-NAME"


@pytest.fixture
def evaluated(tmp_path) -> str:
    """A store with two evaluated models."""
    for run, error in (("run-1", 0.2), ("run-2", 0.1)):
        model = Candidate(
            run_id=run, model_url=f"store:runs/{run}/model", predictions_url="p",
            dataset_name="pets", dataset_fingerprint="f", split="test", tta_views=0,
            backbone="resnet34", num_rows=100,
            metric=Metric(name="error rate", value=error, unit="%"),
            evaluated_at=f"2026-01-0{run[-1]}T00:00:00+00:00",
        )  # fmt: skip
        folder = tmp_path / "runs" / run / "evaluation"
        folder.mkdir(parents=True)
        (tmp_path / "runs" / run / "model").mkdir()
        (tmp_path / "runs" / run / "model/model.json").touch()
        (folder / "candidate.json").write_text(model.model_dump_json())
    return str(tmp_path)


def test_models_are_listed_promoted_and_rolled_back(evaluated, capsys):
    def models(*arguments: str) -> str:
        cli.main(["models", *arguments, "--store", evaluated])
        return capsys.readouterr().out

    listed = [line.split()[0] for line in models("list").splitlines()[1:3]]
    assert listed == ["run-2", "run-1"]
    with pytest.raises(SystemExit):
        cli.main(["models", "show", "pets", "--store", evaluated])
    assert "pets: no alias points at its models" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["models", "show", "run", "--store", evaluated])
    assert "run is ambiguous (run-1, run-2)" in capsys.readouterr().err
    assert models("promote", "run-1") == "champion of pets points at run-1\n"
    models("promote", "run-1")
    assert models("show", "pets").count("run-1") == 1, "a repeated promotion adds no entry"
    shown = models("show", "run-1")
    assert re.search(r"^metric +error rate 20.00%$", shown, re.M)
    assert re.search(r"^aliases +champion$", shown, re.M)
    models("promote", "run-2")
    rows = json.loads(models("list", "--json"))
    assert [(row["run_id"], row["aliases"]) for row in rows] == [
        ("run-2", ["champion"]), ("run-1", []),
    ]  # fmt: skip
    assert models("rollback", "pets") == "champion of pets points at run-1 again\n"
    shown = models("show", "pets")
    assert re.findall(r"run-\d", shown) == ["run-1", "run-2", "run-1"]
    assert f"{evaluated}/runs/run-2/model" in models("show", "run-2")


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (["promote", "run-3"], r"run-3: no evaluated run .* Did you mean run-"),
        (["show", "nothing"], r"nothing: no evaluated run .*pets models list"),
        (["rollback", "pets"], r"pets has no alias 'champion'"),
        (["rollback"], r"required: DATASET"),
    ],
)
def test_models_rejects_invalid_arguments(refused, evaluated, arguments, pattern):
    output = " ".join(refused("models", *arguments, "--store", evaluated))
    assert re.search(pattern, output)


@pytest.mark.parametrize(
    ("flags", "group", "name", "value"),
    [
        (["--train.lr_max", "slice(1e-6,1e-4)"], "train", "lr_max", "slice(1e-06, 0.0001)"),
        (["--train.lr_max=0.00123456789"], "train", "lr_max", "0.00123456789"),
        (["--model.weights", "none"], "model", "weights", "none"),
        (["--train.base_lr", "null"], "train", "base_lr", None),
        (["--train.base_lr=3e-3"], "train", "base_lr", 0.003),
        (["--no-transform.flip"], "transform", "flip", False),
        (["--launch.num_processes", "2"], "launch", "num_processes", 2),
        (["--launch.num_processes", "auto"], "launch", "num_processes", "auto"),
        (["--source.url", "s3://bucket/pets"], "source", "url", "s3://bucket/pets"),
    ],
)
def test_flags_set_the_settings(started, flags, group, name, value):
    assert started("run", *flags).model_dump(mode="json")[group][name] == value


def test_unknown_flags_are_rejected_with_a_suggestion(refused):
    (line,) = refused("run", "--train.epoch", "3")
    assert line.startswith("train.epoch: no such setting. Did you mean train.epochs")
    (line,) = refused("run", "--stroe=x")  # codespell:ignore stroe
    assert line == "stroe: no such setting. Did you mean store?"  # codespell:ignore stroe


def test_abbreviated_flags_are_rejected(refused):
    assert "no such setting" in refused("run", "--train.freeze", "3")[0]


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("train.epochs", "-1", "train.epochs = '-1': input should be greater than or equal to 0"),
        ("train.epochs", "many", "train.epochs = 'many': input should be a valid integer"),
        ("train.lr_max", "fast", "train.lr_max = 'fast': expected a number"),
        ("train.lr_max", "slice(1,1e-4)", "reversed"),
        ("source.kind", "zip", "source.kind = 'zip': input should be 'auto'"),
        ("lr_find.end_lr", "inf", "lr_find.end_lr = 'inf': input should be a finite number"),
        ("source.kind", "folder", "source: kind = folder needs url"),
    ],
)
def test_invalid_values_are_reported_with_setting_and_bound(refused, flag, value, message):
    (line,) = refused("run", f"--{flag}", value)
    assert message in line


def test_incompatible_settings_of_two_groups_are_rejected(refused):
    (line,) = refused("run", "--launch.shard_model", "--train.compile")
    assert line.startswith("launch.shard_model cannot be combined with train.compile = true. ")


def test_all_errors_are_reported_at_once(refused, tmp_path, monkeypatch):
    (tmp_path / "a.yaml").write_text("train: {epochs: -1, epcohs: 2}\nnonsense: 1")
    monkeypatch.setenv("PETS_MODEL__IMAGE_SIZE", "1")
    lines = refused("run", tmp_path / "a.yaml", "--train.batch_size", "x", "--source.kind=zip")
    names = sorted(re.split("[ :]", line.strip())[0] for line in lines)
    assert names == [
        "model.image_size", "nonsense", "source.kind", "train.batch_size", "train.epcohs",
        "train.epochs",
    ]  # fmt: skip


def test_flags_override_the_environment_which_overrides_yaml(started, tmp_path, monkeypatch):
    path = tmp_path / "a.yaml"
    path.write_text("train: {epochs: 11, freeze_epochs: 12, batch_size: 13}\nstore: from-yaml")
    monkeypatch.setenv("PETS_TRAIN__EPOCHS", "21")
    monkeypatch.setenv("PETS_TRAIN__FREEZE_EPOCHS", "22")
    config = started("run", path, "--train.epochs=31")
    assert (config.train.epochs, config.train.freeze_epochs, config.train.batch_size) == (
        31,
        22,
        13,
    )
    assert config.store == "from-yaml"
    assert config.train.weight_decay == PipelineConfig().train.weight_decay
    monkeypatch.setenv("PETS_STORE", "from-environment")
    assert started("run", path).store == "from-environment"
    assert started("run", "--store", "from-flag", path).store == "from-flag"


def test_unknown_environment_variables_of_a_group_are_rejected(refused, monkeypatch):
    monkeypatch.setenv("PETS_TRAIN__EPOCH", "3")
    assert refused("run")[0].startswith(
        "PETS_TRAIN__EPOCH: no such setting. Did you mean train.epochs"
    )


def test_environment_variables_of_unknown_groups_are_rejected(refused, monkeypatch):
    monkeypatch.setenv("PETS_TRIAN__EPOCHS", "3")  # codespell:ignore trian
    assert refused("run")[0].startswith(
        "PETS_TRIAN__EPOCHS: no such setting. Did you mean train.epochs"  # codespell:ignore trian
    )


def test_variables_of_the_documentation_are_accepted(monkeypatch, capsys):
    files = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    files += [file for file in (ROOT / "deployments").rglob("*") if file.is_file()]
    text = "".join(file.read_text() for file in files)
    names = set(re.findall(r"\bPETS_[A-Z_]+[A-Z]\b", text))
    assert names >= {"PETS_SERVE_TOKEN", "PETS_STORE", "PETS_CACHE_DIR", "PETS_TRAIN__EPOCHS"}
    for name in names:
        monkeypatch.setenv(name, "any")
    with pytest.raises(SystemExit):
        cli.main(["run"])
    assert "no such setting" not in capsys.readouterr().err


@pytest.fixture
def started_run(started, tmp_path):
    """Settings and folder of a started run."""
    from pets_core.runtime.runs import start_run

    config = started(
        "run", "--store", tmp_path, "--train.lr_max=slice(1e-6,3e-4)", "--train.seed=4"
    )
    manifest = DatasetManifest.model_construct(name="photos", splits={})
    return config, start_run(config, Run(url=str(tmp_path / "runs/id"), manifest=manifest)).url


def test_config_yaml_of_a_run_can_be_loaded(started, started_run):
    config, url = started_run
    assert started("run", f"{url}/config.yaml") == config


def test_resume_uses_the_settings_of_the_run(started, started_run):
    config, url = started_run
    assert started("run", "--resume", url) == config
    assert started.calls[-1][2].resume == url
    resumed = started("train", "--resume", url, "--launch.num_processes", 2)
    assert resumed.launch.num_processes == 2
    assert resumed.train == config.train


def test_empty_run_to_resume_is_rejected(refused):
    assert "no such run" in refused("run", "--resume", "")[0]


def test_empty_variables_are_not_set(started, monkeypatch):
    monkeypatch.setenv("PETS_STORE", "")
    monkeypatch.setenv("PETS_CACHE_DIR", "")
    monkeypatch.setenv("PETS_SWEEP__BACKBONES", "")
    monkeypatch.setenv("PETS_TRAIN", "")
    assert started("run") == PipelineConfig()


def test_empty_flag_is_a_value(started, refused, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("run: {notes: weekly}\nregistry: {mlflow_uri: 'http://127.0.0.1:1'}\n")
    config = started("run", path, "--run.notes", "", "--registry.mlflow_uri", "")
    assert (config.run.notes, config.registry.mlflow_uri) == ("", None)
    assert "launch.deployment" in refused("run", "--launch.deployment", "")[0]


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (["datasets", "gc", "--grace-hours"], "--grace-hours"),
        (["gc", "--keep-days"], "--keep-days"),
        (["join", "--idle-seconds"], "--idle-seconds"),
    ],
)
def test_times_must_be_numbers(refused, arguments, flag):
    for value in ("nan", "-1"):
        assert refused(*arguments, value)[0].startswith(f"{flag} = {value}: must be at least ")


def test_resume_rejects_missing_runs_and_config_files(refused, started_run, tmp_path):
    assert "no run found" in refused("run", "--resume", tmp_path)[0]
    _, url = started_run
    assert "Remove" in refused("run", f"{url}/config.yaml", "--resume", url)[0]


def test_unknown_commands_are_rejected(refused):
    assert "invalid choice: 'rnu'" in refused("rnu")[0]
    assert "COMMAND" in refused()[0]


def test_full_help_lists_every_setting_with_its_default(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["run", "--help-all"])
    assert caught.value.code == 0
    text = re.sub(r"\s+", " ", capsys.readouterr().out.split("options:", 1)[1])
    defaults = PipelineConfig().model_dump()
    for name in setting_names():
        value = defaults
        for part in name.split("."):
            value = value[part]
        shown = re.search(rf" --{re.escape(name)}[ ,].*?\(default: (\(\)|.*?)\)", text)
        assert shown, name
        assert shown[1].lower() == str(value).lower(), name


@pytest.fixture(scope="module")
def model_url(tmp_path_factory) -> str:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "model", ("Birman", "Pug"))


@pytest.fixture
def photo(tmp_path, jpeg) -> str:
    (tmp_path / "a.jpg").write_bytes(jpeg(1, 80, 60))
    return str(tmp_path / "a.jpg")


def test_predict_prints_one_line_per_photo(model_url, photo, capsys):
    cli.main(["predict", model_url, photo, photo])
    first, second = capsys.readouterr().out.splitlines()
    assert first == second
    assert re.fullmatch(rf"{re.escape(photo)}  (Birman|Pug)  \d+\.\d%", first)


def test_predict_prints_json(model_url, photo, capsys):
    cli.main(["predict", model_url, photo, "--json", "--top", "1"])
    (prediction,) = json.loads(capsys.readouterr().out)
    assert prediction.keys() == {"photo", "label", "probability", "top"}
    assert prediction["top"] == [[prediction["label"], prediction["probability"]]]


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_predict_reports_unreadable_photos_and_exits_1(model_url, photo, tmp_path, capsys, form):
    (tmp_path / "b.jpg").write_text("no photo")
    with pytest.raises(SystemExit) as caught:
        cli.main(["predict", model_url, str(tmp_path / "b.jpg"), photo, *form])
    assert caught.value.code == 1
    output = capsys.readouterr()
    assert output.err.startswith(f"{tmp_path}/b.jpg: not an image")
    assert photo in output.out
    if form:
        assert [("error" in p) for p in json.loads(output.out)] == [True, False]


def test_commands_find_a_model_by_its_alias(tmp_path, model_url, photo, monkeypatch, capsys):
    promote_model(tmp_path, "a1", model_url)
    monkeypatch.setenv("PETS_STORE", str(tmp_path))
    printed = []
    for model in (model_url, "cats", "cats@champion"):
        cli.main(["predict", model, photo])
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] == printed[2]
    evaluated: list[str] = []
    monkeypatch.setattr(flow_command, "start_flow", lambda *a: evaluated.append(a[2].model_url))
    cli.main(["evaluate", "cats", "--source.targets", "class"])
    assert evaluated == [model_url]
    with pytest.raises(SystemExit):
        cli.main(["export", "cats@canary", "--to", "model.onnx"])
    assert "cats has no alias canary" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["MODEL", "PHOTO", "--top", "0"], "--top = 0: must be at least 1"),
        (["MODEL", "PHOTO", "--top", "x"], "invalid int value"),
        (["MODEL"], "PHOTO"),
        ([], "MODEL"),
        (["/no/such/model", "PHOTO"], "/no/such/model is not a model folder"),
        (["MODEL", "PHOTO", "--jsn"], "unrecognized arguments: --jsn"),
    ],
)
def test_predict_rejects_invalid_arguments(refused, model_url, photo, argv, message):
    swap = {"MODEL": model_url, "PHOTO": photo}
    assert message in refused("predict", *(swap.get(arg, arg) for arg in argv))[0]


def output_and_modules(argv: list[str]) -> tuple[str, set[str]]:
    """Run a command in a new process; return its output and the top-level modules it imports."""
    code = (
        "import sys\nfrom pets.cli import main as cli\n"
        "try:\n    cli.main(sys.argv[1:])\n"
        "except SystemExit:\n    pass\n"
        "print('MODULES', *{name.split('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *argv], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout, set(done.stderr.split("MODULES", 1)[1].split())


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["run", "--help"],
        ["predict", "--help"],
        ["similar", "--help"],
        ["run", "--train.epoch=3"],
    ],
)
def test_help_and_argument_errors_import_neither_torch_nor_prefect(argv):
    output, modules = output_and_modules(argv)
    if "--help" in argv:
        assert output.startswith("usage: pets")
    assert "pets" in modules
    assert not modules & {"torch", "prefect", "timm", "pandas"}


def test_predict_does_not_import_prefect(model_url, photo):
    output, modules = output_and_modules(["predict", model_url, photo])
    assert photo in output
    assert "torch" in modules
    assert "prefect" not in modules
