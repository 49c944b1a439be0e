"""The mirror of runs and aliases on a real MLflow server."""

import json
from collections.abc import Iterator
from importlib import util
from pathlib import Path

import numpy as np
import pytest
import yaml
from mlflow_server import run_mlflow
from ports import free_port
from predictions_of import info_of
from prefect import flow

from flows.collab import collab_flow
from flows.evaluate_predictions import evaluate_predictions_flow
from pets_core.config.pipeline import PipelineConfig
from pets_core.config.registry import RegistryConfig
from pets_core.errors import PetsError, TransferError
from pets_core.evaluation.predictions import write_predictions
from pets_core.ratings.config import RatingsConfig
from pets_core.registry.aliases import candidates, promote, rollback
from pets_core.runtime.mlflow_mirror import MlflowMirror, check_mlflow
from pets_core.runtime.run_list import load_report
from pets_core.targets.classes.target import CLASSES
from tasks.mirror import mirror_run

pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
VARIABLE = "PETS_REGISTRY__MLFLOW_URI"
pytestmark = pytest.mark.usefixtures("own_environment")


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[str]:
    with run_mlflow(tmp_path_factory.mktemp("mlflow")) as url:
        yield url


@pytest.fixture
def client(server):
    from mlflow import MlflowClient

    return MlflowClient(server, server)


@pytest.fixture
def add(add_run, request):
    """Function that adds an evaluated run of a data set that only this test uses."""
    name = request.node.name

    def add(run_id: str, **settings) -> str:
        return add_run(run_id, dataset=name, **settings)

    add.store, add.dataset = add_run.store, name
    return add


def models(store: str) -> dict:
    return {model.run_id: model for model in candidates(store)}


def runs_of(client, dataset: str) -> list:
    experiment = client.get_experiment_by_name(dataset)
    return client.search_runs([experiment.experiment_id])


@pytest.mark.slow
def test_a_run_has_settings_metrics_tags_and_report(server, client, add, tmp_path):
    notes = "as before. " * 600
    url = add("a1", run={"name": "first", "tags": ["nightly"], "notes": notes})
    mirror = MlflowMirror(server, add.store)
    page = mirror.add_evaluation(url)
    (run,) = runs_of(client, add.dataset)
    assert page.endswith(f"/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}")
    report = load_report(url)
    assert run.info.run_name == "first"
    assert run.info.status == "FINISHED"
    assert run.data.tags["pets.run_id"] == "a1"
    assert run.data.tags["pets.tag.nightly"] == "true"
    assert run.data.tags["mlflow.note.content"] == notes[:5000]
    assert run.data.params["model.backbone"] == "tf_efficientnet_lite0"
    assert run.data.params["train.batch_size"] == "0"
    assert not any(name.startswith("run.") for name in run.data.params)
    assert run.data.metrics["error rate"] == pytest.approx(report.primary.value)
    (loss,) = client.get_metric_history(run.info.run_id, "train/loss")
    assert (loss.value, loss.step) == (0.5, 0)
    assert client.get_metric_history(run.info.run_id, "valid/error rate")[0].value == 0.1
    page = client.download_artifacts(run.info.run_id, "report.html", str(tmp_path))
    assert Path(page).read_bytes() == Path(url, "evaluation/report.html").read_bytes()
    mirror.add_evaluation(url)
    assert len(runs_of(client, add.dataset)) == 1


@pytest.mark.slow
def test_secrets_of_urls_are_not_mirrored(server, client, add):
    url = add("a1")
    path = Path(url, "config.yaml")
    settings = yaml.safe_load(path.read_text())
    settings["source"]["url"] = "https://me:password@host/photos.zip?signature=secret"
    path.write_text(yaml.safe_dump(settings))
    MlflowMirror(server, add.store).add_evaluation(url)
    (run,) = runs_of(client, add.dataset)
    assert run.data.params["source.url"] == "https://host/photos.zip"


@pytest.mark.slow
def test_an_interrupted_mirror_is_completed(server, client, add, monkeypatch):
    url = add("a1")
    mirror = MlflowMirror(server, add.store)

    def fail(*args) -> None:
        raise OSError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(mirror, "_upload", fail)
        with pytest.raises(OSError, match="no space"):
            mirror.add_evaluation(url)
    (partial,) = runs_of(client, add.dataset)
    assert partial.info.status == "RUNNING"
    mirror.add_evaluation(url)
    (run,) = runs_of(client, add.dataset)
    assert run.info.status == "FINISHED"
    # The metrics were written twice.
    assert len(client.get_metric_history(run.info.run_id, "error rate")) == 1


@pytest.mark.slow
def test_a_store_that_has_moved_is_mirrored(server, client, add):
    add("a1")
    promote(add.store, "champion", models(add.store)["a1"])
    moved = f"{add.store}-moved"
    Path(add.store).rename(moved)
    assert MlflowMirror(server, moved).move_alias(add.dataset, "champion") == "1"
    (run,) = runs_of(client, add.dataset)
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == [
        "model",
        "report.html",
    ]


@pytest.mark.slow
def test_the_alias_follows_promotion_and_rollback(server, client, add, tmp_path, capsys):
    for run_id in ("a1", "b2"):
        add(run_id)
    store, dataset = add.store, add.dataset
    mirror = MlflowMirror(server, store)
    assert mirror.move_alias(dataset, "champion") is None
    found = models(store)
    numbers = []
    for move in (
        lambda: promote(store, "champion", found["a1"]),
        lambda: promote(store, "champion", found["b2"]),
        lambda: rollback(store, dataset, "champion"),
    ):
        move()
        numbers.append(mirror.move_alias(dataset, "champion"))
        version = client.get_model_version_by_alias(dataset, "champion")
        assert version.version == numbers[-1]
    assert numbers == ["1", "2", "1"]
    assert version.tags["pets.run_id"] == "a1"
    assert version.description.startswith("error rate ")
    assert capsys.readouterr().out == ""
    import mlflow

    mlflow.set_tracking_uri(server)
    (tmp_path / "download").mkdir()
    folder = mlflow.artifacts.download_artifacts(
        artifact_uri=f"models:/{dataset}@champion", dst_path=str(tmp_path / "download")
    )
    assert Path(folder, "model.json").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_a_flow_mirrors_its_run_and_a_missed_move(server, client, add, capsys):
    config = PipelineConfig.model_validate({"store": add.store, "registry": {"mlflow_uri": server}})
    report = load_report(add("b2"))
    add("a1")
    promote(add.store, "champion", models(add.store)["a1"])

    @flow
    def mirroring() -> str:
        mirror_run(config, report)
        return "done"

    assert mirroring() == "done"
    ids = {run.data.tags["pets.run_id"] for run in runs_of(client, add.dataset)}
    assert ids == {"a1", "b2"}
    assert client.get_model_version_by_alias(add.dataset, "champion").tags["pets.run_id"] == "a1"


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_ratings_and_stored_predictions_are_mirrored(server, client, tmp_path):
    settings = {"store": str(tmp_path / "store"), "registry": {"mlflow_uri": server}}
    config = RatingsConfig.model_validate(
        settings
        | {"cache_dir": str(tmp_path / "cache"), "recommender": {"num_factors": 4}}
        | {"train": {"epochs": 1, "weight_decay": 0.1}, "gate": {"promote": True}}
    )
    info, predictions = info_of(list("abcd")), str(tmp_path / "predictions.parquet")
    outputs = np.eye(4, dtype=np.float32)
    write_predictions(predictions, CLASSES, info, list("wxyz"), np.arange(4), outputs)
    stored = evaluate_predictions_flow(predictions, PipelineConfig.model_validate(settings))
    reports = {"sample-ratings": collab_flow(config), info.dataset_name: stored}
    for dataset, report in reports.items():
        (run,) = runs_of(client, dataset)
        assert run.info.status == "FINISHED"
        assert run.data.metrics[report.primary.name] == pytest.approx(report.primary.value)
    champion = client.get_model_version_by_alias("sample-ratings", "champion")
    assert champion.run_id == runs_of(client, "sample-ratings")[0].info.run_id


@pytest.mark.usefixtures("prefect_server")
def test_a_server_that_is_away_fails_the_task_only(add, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    uri = f"http://127.0.0.1:{free_port()}"
    config = PipelineConfig.model_validate({"store": add.store, "registry": {"mlflow_uri": uri}})
    report = load_report(add("a1"))

    @flow
    def mirroring() -> str:
        from tasks.mirror import _mirror

        state = _mirror(config, report, return_state=True)
        assert state.is_failed()
        assert (
            f"run and alias are not completely mirrored: {uri}: MLflow: the server is unreachable"
            in (state.message)
        )
        mirror_run(config, report)
        return "done"

    assert mirroring() == "done"
    with pytest.raises(TransferError, match=f"{uri}: MLflow: "):
        MlflowMirror(uri, add.store).add_evaluation(report.url.rsplit("/", 1)[0])


@pytest.mark.slow
def test_the_command_line_mirrors_moves(server, client, add, pets, monkeypatch, capsys):
    add("a1")
    add("b2")
    monkeypatch.setenv(VARIABLE, f"{server}/")
    for words, champion in (
        (("promote", "a1"), "a1"), (("promote", "b2"), "b2"), (("rollback", add.dataset), "a1"),
    ):  # fmt: skip
        printed = pets("models", *words, "--store", add.store, "--json")
        assert json.loads(printed)["model"]["run_id"] == champion
        version = client.get_model_version_by_alias(add.dataset, "champion")
        assert version.tags["pets.run_id"] == champion
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv(VARIABLE, "http://127.0.0.1:1")
    from pets.cli import main as cli

    cli.main(["models", "promote", "a1", "--store", add.store, "--alias", "best"])
    printed = capsys.readouterr()
    assert "best of " in printed.out
    assert printed.err == (
        "warning: the alias is not mirrored: http://127.0.0.1:1: MLflow: the server is "
        "unreachable\n"
    )


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("mlflow:5000", "must be the address of an MLflow server, such as http://mlflow:5000"),
        ("http://me:secret@mlflow:5000", "must not have a user, password, query or fragment"),
        ("me:secret@mlflow:5000", "must be the address of an MLflow server"),
        ("http://mlflow:5000/#/models", "must not have a user, password, query or fragment"),
    ],
)
def test_a_wrong_address_is_refused_before_any_work(add, pets, monkeypatch, capsys, uri, message):
    add("a1")
    monkeypatch.setenv(VARIABLE, uri)
    with pytest.raises(SystemExit):
        pets("models", "promote", "a1", "--store", add.store)
    assert not Path(add.store, "models").exists()
    assert f"error: {VARIABLE}: {message}" in capsys.readouterr().err
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(SystemExit):
        pets("run", "--registry.mlflow_uri", uri)
    printed = capsys.readouterr().err
    assert message in printed
    assert "secret" not in printed


def test_a_missing_client_is_reported_before_any_work(monkeypatch):
    found = util.find_spec
    monkeypatch.setattr(
        "pets_core.runtime.mlflow_mirror.find_spec",
        lambda name: None if name == "mlflow" else found(name),
    )
    with pytest.raises(PetsError, match=r"run pip install 'pets-pipeline\[mlflow\]"):
        check_mlflow("http://mlflow:5000", "champion")
    check_mlflow(None, "champion")


@pytest.mark.parametrize("alias", ["latest", "v1", "V2", "my.best"])
def test_an_alias_that_mlflow_does_not_accept_is_refused(alias):
    with pytest.raises(PetsError, match="MLflow does not accept this name"):
        check_mlflow("http://mlflow:5000", alias)
    check_mlflow("http://mlflow:5000", f"{alias.replace('.', '-')}-ready")


def test_an_empty_variable_means_no_mirror():
    assert RegistryConfig(mlflow_uri="").mlflow_uri is None
