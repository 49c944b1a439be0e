"""The flows against a real Prefect server: results, artifacts, failures."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from flows.collab import collab_flow
from flows.evaluate import evaluate_flow
from flows.evaluate_predictions import evaluate_predictions_flow
from flows.ingest import ingest_flow
from flows.lr_find import lr_find_flow
from flows.pipeline import pipeline
from flows.stage import stage_flow
from flows.train import train_flow
from pets.cli import main as cli
from pets_core.config.pipeline import PipelineConfig
from pets_core.data.ingest.commit import ingest
from pets_core.errors import PetsError
from pets_core.evaluation.predictions import read_info, read_predictions, write_predictions
from pets_core.models.package import load_model
from pets_core.ratings.config import RatingsConfig
from pets_core.records.training import LRSuggestion
from pets_core.registry.aliases import current, history
from pets_core.runtime.request import WorkRequest
from pets_core.runtime.runs import load_result, write_request
from pets_core.targets.classes.target import CLASSES

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def config(small_config) -> PipelineConfig:
    settings = {
        "model": {"backbone": "test_efficientnet", "weights": "none", "image_size": 64},
        "train": {"batch_size": 32, "freeze_epochs": 1, "epochs": 1, "mixed_precision": "no"},
        "lr_find": {"num_steps": 12},
        "evaluate": {"most_confused_min_count": 1},
    }
    return PipelineConfig.model_validate(small_config.model_dump(exclude_defaults=True) | settings)


def test_pipeline_creates_a_model_and_every_artifact(config, tmp_path, read_artifacts) -> None:
    state = pipeline(config, return_state=True)
    report = state.result()
    artifacts = read_artifacts(state.state_details.flow_run_id)
    assert set(artifacts) == {
        "dataset-summary",
        "quarantine",
        "duplicates",
        "lr-finder",
        "training-progress",
        "training-curves",
        "confusion-matrix",
        "confusion-table",
        "most-confused",
        "classes",
        "calibration",
        "top-losses",
        "confident-errors",
        "species",
        "confused-pairs",
        "label-issues",
        "run-summary",
    }
    assert artifacts.pop("training-progress") == 100
    summary = artifacts["run-summary"].replace("\\", "")
    assert f"# Error rate {report.primary.value:.1%}: gate not configured" in summary
    table = json.loads(artifacts["confusion-table"])
    assert sum(row["count"] for row in table) == report.num_rows
    first = json.loads(artifacts["most-confused"])[0]
    worst = report.highlights.rows[0]
    assert (first["actual"], first["predicted"], str(first["count"])) == worst[:3]
    recalls = [row["recall"] for row in json.loads(artifacts["classes"])]
    assert len(recalls) == 37
    assert recalls == sorted(recalls), "ascending order"
    assert artifacts["top-losses"].count("data:image/jpeg") == 32, "photos and attention maps"
    for key in ("lr-finder", "training-curves", "confusion-matrix", "calibration"):
        assert "data:image/png;base64,iVBOR" in artifacts[key]
    assert all(len(data) < 300_000 for data in artifacts.values())
    assert len(load_model(report.model_url).card.vocabulary) == 37
    assert (tmp_path / "store" / "runs").is_dir()


def photos_of(manifest):
    return pq.read_table(f"{manifest.url}/photos.parquet").to_pandas().set_index("id").sort_index()


@pytest.mark.slow
def test_each_stage_runs_as_a_flow(config) -> None:
    manifest = ingest_flow(config)
    assert manifest.num_rows == 37 * 4
    assert lr_find_flow(config).num_steps == 12
    fixed = config.model_copy(update={"train": config.train.model_copy(update={"base_lr": 2e-3})})
    result = train_flow(fixed)
    assert result.base_lr == 2e-3
    assert result.probe_url is None, "nothing is evaluated"
    report = evaluate_flow(result.model_url, config)
    assert report.model_url == result.model_url
    again = evaluate_predictions_flow(report.predictions_url, config)
    figures = {"url", "seconds"}
    assert again.model_dump(exclude=figures) == report.model_dump(exclude=figures)
    assert report.num_trained_on == 0
    # Another seed moves training photos of the model into the validation split.
    moved = config.model_copy(update={
        "source": config.source.model_copy(update={"seed": 3}),
        "evaluate": config.evaluate.model_copy(update={"split": "valid"}),
    })  # fmt: skip
    overlapping = evaluate_flow(result.model_url, moved)
    before, now = photos_of(manifest), photos_of(ingest_flow(moved))
    assert overlapping.num_rows == (now.split == "valid").sum()
    assert overlapping.num_trained_on == ((before.split == "train") & (now.split == "valid")).sum()
    assert overlapping.num_trained_on > 0
    assert not overlapping.verdict.passed


@pytest.mark.slow
def test_gate_promotes_or_rejects(config, read_artifacts, tmp_path) -> None:
    """The first model is promoted, an equal one passes, and one above the limit is rejected."""

    def evaluate_with(**gate):
        settings = config.gate.model_copy(update={"promote": True, **gate})
        changed = config.model_copy(update={"gate": settings})
        return evaluate_predictions_flow(predictions, changed, return_state=True)

    model = train_flow(config.model_copy(
        update={"train": config.train.model_copy(update={"base_lr": 1e-2})}
    )).model_url  # fmt: skip
    predictions = evaluate_flow(model, config).predictions_url
    first, second = evaluate_with(), evaluate_with()
    assert first.name == second.name == "Completed"
    name = read_info(predictions).dataset_name
    assert current(config.store, name, "champion").why == "promoted"
    assert second.result().is_champion
    promoted = history(config.store, name, "champion")
    assert len(promoted) == 2
    # Another model with the same predictions is compared with the champion.
    info = read_info(predictions).model_copy(update={"model_url": str(tmp_path / "twin")})
    own = read_predictions(predictions, CLASSES)
    twin = str(tmp_path / "twin.parquet")
    write_predictions(twin, CLASSES, info, own.ids, own.targets, own.outputs)
    compared = evaluate_predictions_flow(twin, config, return_state=True)
    assert compared.result().comparison.improvement.value == 0
    assert "McNemar" in read_artifacts(compared.state_details.flow_run_id)["champion"]
    state = evaluate_with(max_error_rate=0.0)
    assert (state.name, state.type.value) == ("Rejected", "FAILED")
    assert "gate.max_error_rate = 0.00%" in state.message
    assert history(config.store, name, "champion") == promoted
    artifacts = read_artifacts(state.state_details.flow_run_id)
    assert "does not pass the gate" in artifacts["run-summary"]
    assert "max\\_error\\_rate" in artifacts["run-summary"]
    assert "champion" not in artifacts, "a model is not compared with itself"


def test_invalid_setting_fails_the_run_before_any_work(config, read_artifacts) -> None:
    broken = config.model_copy(
        update={"model": config.model.model_copy(update={"backbone": "resnet33"})}
    )
    state = pipeline(broken, return_state=True)
    assert state.is_failed()
    with pytest.raises(PetsError, match="Did you mean"):
        state.result()
    assert not read_artifacts(state.state_details.flow_run_id)
    assert not list(Path(config.store).rglob("*")), "the store is empty"


@pytest.mark.parametrize(
    ("group", "value", "message"),
    [
        ("source", {"url": "/nowhere/at/all"}, "no such folder"),
        ("evaluate", {"split": "valid"}, "evaluate.split = valid"),
        ("store", "/dev/null/store", "store = /dev/null/store: cannot be written"),
        ("cache_dir", "/dev/null/cache", "cache_dir = /dev/null/cache: cannot be written"),
    ],
)
def test_invalid_input_writes_nothing_to_the_store(config, group: str, value, message: str) -> None:
    settings = config.model_dump(exclude_defaults=True)
    settings["source"]["valid_fraction"] = 0.0
    if isinstance(value, dict):
        settings.setdefault(group, {}).update(value)
    else:
        settings[group] = value
    state = pipeline(PipelineConfig.model_validate(settings), return_state=True)
    with pytest.raises(PetsError, match=message):
        state.result()
    assert not list(Path(config.store).rglob("*"))


def test_flow_parameters_have_the_settings_schema() -> None:
    """The Prefect UI builds its form from this schema."""
    schema = pipeline.parameters.model_dump()
    train = schema["definitions"]["TrainConfig"]["properties"]
    assert train["epochs"]["anyOf"][0]["minimum"] == 0
    assert "unfreezing" in train["epochs"]["description"]


def test_unknown_parameter_is_rejected() -> None:
    from prefect.exceptions import ParameterTypeError

    with pytest.raises(ParameterTypeError, match="epoch"):
        pipeline(config={"train": {"epoch": 3}})


def test_unknown_deployment_is_rejected_before_any_work(config, tmp_path) -> None:
    launch = config.launch.model_copy(update={"deployment": "rank-stage/gpuu"})
    with pytest.raises(PetsError, match=r"launch.deployment = rank-stage/gpuu: no such deployment"):
        pipeline(config.model_copy(update={"launch": launch}))
    assert not (tmp_path / "store").exists()


@pytest.mark.slow
def test_gpu_pool_stage_fails_on_a_machine_without_a_gpu(config, tmp_path, monkeypatch) -> None:
    """Even if the settings of the requesting run do not require a GPU."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    request = WorkRequest(
        stage="lr-find", config=config, run_url=str(tmp_path / "run"), manifest=ingest(config)
    )
    url = write_request(request)
    with pytest.raises(PetsError, match=r"launch\.require_gpu = true, but torch finds no GPU"):
        stage_flow(url, require_gpu=True)
    assert load_result(request, LRSuggestion) is None
    stage_flow(url)
    assert load_result(request, LRSuggestion) is not None


@pytest.mark.slow
def test_collab_flow_trains_evaluates_and_promotes(
    tmp_path, read_artifacts, monkeypatch, capsys
) -> None:
    settings = {
        "store": str(tmp_path / "store"),
        "cache_dir": str(tmp_path / "cache"),
        "recommender": {"num_factors": 8, "weight_decays": (8.0, 0.1)},
        "lr_find": {"num_steps": 60},
        "train": {"epochs": 3, "base_lr": None},
        "gate": {"promote": True},
    }
    config = RatingsConfig.model_validate(settings)
    state = collab_flow(config, return_state=True)
    report = state.result()
    artifacts = read_artifacts(state.state_details.flow_run_id)
    assert set(artifacts) == {
        "dataset-summary", "lr-finder", "training-progress", "training-curves", "weight-decay",
        "run-summary", *(section.key for section in report.sections),
    }  # fmt: skip
    own, biases = report.primary.value, report.metric("RMSE of user and item biases")
    assert own < biases < report.primary.baseline
    assert f"{report.num_rows:,} test ratings" in artifacts["run-summary"]
    assert "600 users and 400 items with training ratings" in artifacts["dataset-summary"]
    assert artifacts["weight-decay"].startswith("# Best weight decay: 0.1")
    assert report.model_url.endswith("-wd-0.1/model")
    run_id = str(state.state_details.flow_run_id)
    champion = current(config.store, "sample-ratings", "champion")
    assert (champion.model.run_id, champion.model.target) == (run_id, "ratings")
    cli.main(["models", "list", "--store", config.store])
    listed = capsys.readouterr().out.splitlines()[1]
    for text in (run_id, "sample-ratings", "dot", f"RMSE {own:.4g}", "ratings", "champion"):
        assert text in listed

    # Another version, in which some held-out ratings are training ratings of the champion.
    worse = settings | {"ratings": {"test_fraction": 0.3}, "recommender": {"num_factors": 8}}
    worse["train"] = {"epochs": 1, "base_lr": 1e-5, "weight_decay": 0.1}
    rejected = collab_flow(RatingsConfig.model_validate(worse), return_state=True)
    assert rejected.name == "Rejected"
    compared = rejected.result(raise_on_failure=False).comparison
    assert compared.champion_url == report.model_url
    assert compared.champion_metric.value < compared.metric.value
    assert 0 < compared.num_excluded < compared.num_rows
    assert "same" in read_artifacts(rejected.state_details.flow_run_id)["champion"]
    assert current(config.store, "sample-ratings", "champion") == champion

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a completed stage runs again")

    monkeypatch.setattr("tasks.stages.launch", fail)
    again = collab_flow(config, resume=str(tmp_path / "store/runs" / run_id))
    assert again.primary == report.primary
    assert again.is_champion
    with pytest.raises(PetsError, match="no ratings run found there"):
        collab_flow(config, resume=str(tmp_path / "nowhere"))


@pytest.mark.slow
def test_collab_flow_searches_the_weight_decay(tmp_path, read_artifacts, monkeypatch) -> None:
    settings = {
        "store": str(tmp_path / "store"),
        "cache_dir": str(tmp_path / "cache"),
        "recommender": {"num_factors": 8},
        "train": {"epochs": 2, "batch_size": 1024},
    }
    config = RatingsConfig.model_validate(settings)
    state = collab_flow(config, return_state=True)
    report, artifacts = state.result(), read_artifacts(state.state_details.flow_run_id)
    rows = [line.split("|") for line in artifacts["weight-decay"].splitlines() if "`" in line]
    errors = {float(row[1]): float(row[3]) for row in rows}
    best = min(errors, key=errors.get)
    assert 0.3 in errors
    assert len(errors) >= 2
    assert report.model_url.endswith(f"-wd-{best:g}/model")
    assert "lr-finder" not in artifacts, "train.base_lr has a default"

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a completed stage runs again")

    run_url = str(tmp_path / "store/runs" / str(state.state_details.flow_run_id))
    with monkeypatch.context() as patch:
        patch.setattr("tasks.stages.launch", fail)
        assert collab_flow(config, resume=run_url).model_url == report.model_url

    alone = RatingsConfig.model_validate(settings | {"ratings": {"valid_fraction": 0}})
    state = collab_flow(alone, return_state=True)
    run_url = str(tmp_path / "store/runs" / str(state.state_details.flow_run_id))
    assert state.result().model_url == f"{run_url}/model"
    assert "weight-decay" not in read_artifacts(state.state_details.flow_run_id)


def test_gate_setting_invalid_for_ratings_is_rejected_before_any_work(tmp_path) -> None:
    gate = {"max_error_rate": 0.1}
    config = RatingsConfig.model_validate({"store": str(tmp_path / "store"), "gate": gate})
    with pytest.raises(PetsError, match=r"gate\.max_error_rate = 0\.1 .*set gate\.max_value"):
        collab_flow(config)
    assert not (tmp_path / "store").exists()
