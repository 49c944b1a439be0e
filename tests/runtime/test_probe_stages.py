"""Stages with cached features: probe, fine-tuning from it, baselines, LR finder."""

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from predicting import predict_photos

from pets_core.config.pipeline import PipelineConfig
from pets_core.data.ingest.commit import ingest
from pets_core.errors import PetsError
from pets_core.evaluation.predictions import read_predictions
from pets_core.models.classifier import Classifier
from pets_core.models.package import load_model
from pets_core.records.dataset import DatasetManifest
from pets_core.records.inference import PredictResult
from pets_core.records.training import LRSuggestion, TrainResult
from pets_core.runtime import photo_rank, worker
from pets_core.runtime.launcher import launch
from pets_core.runtime.photo_rank import PhotoRank
from pets_core.runtime.request import WorkRequest
from pets_core.runtime.watchdog import Watchdog
from pets_core.targets.evaluate import evaluate
from pets_core.targets.registry import get_target

BASE_LR = 1e-3


@pytest.fixture
def config_of(small_config):
    """Return a function of kind of target and settings of `train` that returns all settings."""

    def config(targets: str = "class", **train) -> PipelineConfig:
        values = small_config.model_dump(exclude_defaults=True)
        values["source"] |= {"targets": targets}
        values["model"] = {"backbone": "test_efficientnet", "weights": "none", "image_size": 64}
        values["train"] = {"batch_size": 32, "mixed_precision": "no"} | train
        values["lr_find"] = {"num_steps": 24}
        return PipelineConfig.model_validate(values)

    return config


@pytest.fixture
def run(tmp_path):
    """Return a function that runs a stage in this process."""

    def run_stage(stage: str, config: PipelineConfig, manifest: DatasetManifest, **fields):
        fields = {"base_lr": BASE_LR, "run_url": str(tmp_path / "run")} | fields
        return worker.run(WorkRequest(stage=stage, config=config, manifest=manifest, **fields))

    return run_stage


def feature_files(config: PipelineConfig) -> list[Path]:
    return sorted((Path(config.cache_dir) / "features").glob("*.f32"))


@pytest.mark.parametrize("targets", ["class", "tags", "points", "box"])
def test_probe_of_every_kind_is_trained_evaluated_and_compared(config_of, run, targets, tmp_path):
    config = config_of(targets, recipe="probe")
    manifest = ingest(config)
    trained = run("train", config, manifest, base_lr=None)
    (probe,) = trained.epochs
    assert (probe.phase, trained.num_steps, trained.base_lr) == ("probe", 0, None)
    assert trained.probe_url == trained.model_url
    assert not (tmp_path / "run/probe").exists()
    predicted = run(
        "predict", config, manifest, model_url=trained.model_url, probe_url=trained.probe_url
    )
    assert [each.name for each in predicted.baselines] == ["nearest neighbours"]
    report = evaluate(config, str(tmp_path / "run"), predicted, training=trained)
    assert [each.name for each in report.baselines] == ["nearest neighbours"]
    assert report.baselines_text.endswith(f", this model {report.primary.format()}")
    valid = read_predictions(predicted.valid_url, get_target(targets))
    if targets == "class":
        wrong = (valid.outputs.argmax(1) != valid.targets).mean()
        assert probe.valid_metric == pytest.approx(wrong)


def test_fine_tuned_model_is_compared_with_probe_and_neighbours(config_of, run, tmp_path):
    config = config_of(freeze_epochs=1, epochs=1)
    manifest = ingest(config)
    trained = run("train", config, manifest)
    assert [epoch.phase for epoch in trained.epochs] == ["frozen", "unfrozen"]
    probe = load_model(trained.probe_url)
    assert probe.model.head[-1].weight.any()
    predicted = run(
        "predict", config, manifest, model_url=trained.model_url, probe_url=trained.probe_url
    )
    target = get_target("class")
    own = {each.name: each for each in predicted.baselines}
    assert list(own) == ["nearest neighbours", "linear probe"]
    stored = read_predictions(own["linear probe"].predictions_url, target)
    again = run("predict", config, manifest, model_url=trained.probe_url, run_url=str(tmp_path))
    direct = read_predictions(again.predictions_url, target)
    np.testing.assert_allclose(stored.outputs, direct.outputs, atol=1e-5)
    report = evaluate(config, str(tmp_path / "run"), predicted, training=trained)
    wrong = (direct.outputs.argmax(1) != direct.targets).mean()
    assert report.baselines[1].metric.value == pytest.approx(wrong)
    is_better = report.baselines[1].improvement.low > 0
    assert is_better == (not any("linear probe" in text for text in report.warnings))


def test_probe_can_be_used_for_prediction(config_of, run, jpeg, tmp_path):
    config = config_of(recipe="probe")
    trained = run("train", config, ingest(config), base_lr=None)
    (tmp_path / "a.jpg").write_bytes(jpeg(1, 64, 64))
    (prediction,) = predict_photos(trained.model_url, [str(tmp_path / "a.jpg")])
    assert prediction.label


def test_training_starts_from_the_probe(config_of, run):
    config = config_of(head="probe", epochs=1, base_lr=1e-9, keep="best")
    manifest = ingest(config)
    trained = run("train", config, manifest, base_lr=1e-9)
    assert [epoch.phase for epoch in trained.epochs] == ["probe", "unfrozen"]
    assert trained.epochs[1].valid_loss == pytest.approx(trained.epochs[0].valid_loss, rel=1e-4)
    probe, model = load_model(trained.probe_url).model, load_model(trained.model_url).model
    torch.testing.assert_close(model.head[-1].weight, probe.head[-1].weight, atol=1e-6, rtol=0)


def test_best_weights_are_those_of_the_probe_if_epochs_do_harm(config_of, run):
    config = config_of(head="probe", epochs=1, keep="best")
    manifest = ingest(config)
    trained = run("train", config, manifest, base_lr=0.5)
    assert trained.epochs[1].valid_loss > trained.epochs[0].valid_loss
    probe, model = load_model(trained.probe_url).model, load_model(trained.model_url).model
    assert all(map(torch.equal, probe.state_dict().values(), model.state_dict().values()))
    assert trained.kept_epoch("best").phase == "probe"


def test_features_are_computed_once(config_of, run, monkeypatch):
    config = config_of(freeze_epochs=1, epochs=1)
    manifest = ingest(config)
    run("lr-find", config, manifest)
    (file,) = feature_files(config)
    written = file.stat().st_mtime_ns
    trained = run("train", config, manifest)
    assert len(feature_files(config)) == 2, "training and validation photos"
    assert file.stat().st_mtime_ns == written
    run("predict", config, manifest, model_url=trained.model_url, probe_url=trained.probe_url)
    assert len(feature_files(config)) == 3
    values = np.fromfile(file, np.float32).reshape(manifest.splits["train"].num_rows, -1)
    rank = PhotoRank(WorkRequest(stage="embed", config=config, manifest=manifest))
    built = rank.model()
    loader = rank.eval_loader(rank.photos("train", built.card), built.card.center_crop())
    with torch.no_grad():
        direct = torch.cat([built.model.eval().embed(batch.inputs) for batch in loader.epoch(0)])
    np.testing.assert_allclose(values, direct, atol=1e-5)


def test_lr_finder_on_features_sends_a_heartbeat_per_step(config_of, run, monkeypatch):
    config = config_of()
    manifest = ingest(config)
    run("lr-find", config, manifest)
    assert feature_files(config)
    beats = []
    monkeypatch.setattr(Watchdog, "beat", lambda self: beats.append(self))
    num_steps = run("lr-find", config, manifest).num_steps
    assert len(beats) >= num_steps > 0


def test_retried_training_does_not_solve_the_probe_again(config_of, run, monkeypatch):
    config = config_of(epochs=0)
    manifest = ingest(config)
    first = run("train", config, manifest)
    monkeypatch.setattr(photo_rank, "fit_linear_probe", None)
    assert run("train", config, manifest).probe_url == first.probe_url


def test_interrupted_features_leave_no_file(config_of, run, monkeypatch):
    def fail(*_):
        raise RuntimeError("stop")

    config = config_of()
    manifest = ingest(config)
    monkeypatch.setattr(Classifier, "embed", fail)
    with pytest.raises(RuntimeError, match="stop"):
        run("lr-find", config, manifest)
    assert not [*(Path(config.cache_dir) / "features").glob("*.partial"), *feature_files(config)]


def test_model_is_compared_with_the_remaining_baselines(config_of, run, tmp_path):
    config = config_of(epochs=0)
    manifest = ingest(config)
    trained = run("train", config, manifest)
    predicted = run(
        "predict", config, manifest, model_url=trained.model_url, probe_url=trained.probe_url
    )
    Path(predicted.baselines[0].predictions_url).unlink()
    report = evaluate(config, str(tmp_path / "run"), predicted, training=trained)
    assert [each.name for each in report.baselines] == ["linear probe"]
    assert any("not compared with the nearest neighbours" in text for text in report.warnings)


def test_thresholds_of_baselines_are_chosen_on_the_evaluated_photos_as_the_model_does(
    config_of, run, tmp_path
):
    values = config_of("tags", recipe="probe").model_dump(exclude_defaults=True)
    config = PipelineConfig.model_validate(values | {"evaluate": {"split": "valid"}})
    manifest = ingest(config)
    trained = run("train", config, manifest, base_lr=None)
    urls = {"model_url": trained.model_url, "probe_url": trained.probe_url}
    predicted = run("predict", config, manifest, **urls)
    report = evaluate(config, str(tmp_path / "run"), predicted, training=trained)
    target = get_target("tags")
    stored = read_predictions(predicted.baselines[0].predictions_url, target)
    chosen = target.evaluator(stored, stored, config.evaluate, is_run_model=True).score()
    fixed = target.evaluator(stored, None, config.evaluate, is_run_model=True).score()
    assert report.baselines[0].metric.value == pytest.approx(chosen.metric.value)
    assert chosen.metric.value != pytest.approx(fixed.metric.value)


def test_truncated_features_are_computed_again(config_of, run):
    config = config_of()
    manifest = ingest(config)
    first = run("lr-find", config, manifest)
    (file,) = feature_files(config)
    content = file.read_bytes()
    file.write_bytes(content[:-4])
    assert run("lr-find", config, manifest).steepest == first.steepest
    assert file.read_bytes() == content


@pytest.mark.parametrize(
    "settings",
    [
        {"lr_find": {"on_features": False}},
        {"transform": {"mixup_alpha": 0.4}},
        {"train": {"freeze_to": 0}},
        {"train": {"freeze_epochs": 0}},
        {"launch": {"decode_cache_gib": 1e-6}},
    ],
)
def test_lr_finder_uses_the_whole_model_if_training_does_not_start_with_the_head(
    config_of, run, settings
):
    values = config_of().model_dump(exclude_defaults=True)
    for group, changed in settings.items():
        values[group] = values.get(group, {}) | changed
    config = PipelineConfig.model_validate(values)
    assert run("lr-find", config, ingest(config)).num_steps > 0
    assert not feature_files(config)


def test_baselines_can_be_turned_off(config_of, run, tmp_path):
    config_of = partial(config_of, epochs=0, frozen_on_features=False)
    values = config_of().model_dump(exclude_defaults=True)
    config = PipelineConfig.model_validate(values | {"evaluate": {"baselines": False}})
    manifest = ingest(config)
    trained = run("train", config, manifest)
    assert trained.probe_url is None
    assert not feature_files(config)
    assert run("predict", config, manifest, model_url=trained.model_url).baselines == ()
    assert run("train", config_of(), manifest, is_evaluated=False).probe_url is None


def test_features_beyond_the_limit_of_the_cache(config_of, run, capsys):
    values = config_of(recipe="probe").model_dump(exclude_defaults=True)
    values["launch"] = {"decode_cache_gib": 1e-6}
    config = PipelineConfig.model_validate(values)
    manifest = ingest(config)
    with pytest.raises(
        PetsError, match=r"train.recipe = probe, .*: raise launch.decode_cache_gib \(up to 1 GiB"
    ):
        run("train", config, manifest, base_lr=None)
    values["train"] |= {"recipe": "fine_tune", "epochs": 0}
    trained = run("train", PipelineConfig.model_validate(values), manifest)
    assert trained.probe_url is None
    assert "There is no linear probe to compare with: the features" in capsys.readouterr().out


def test_constant_features_do_not_stop_fine_tuning(config_of, run, monkeypatch, capsys):
    def fail(*_):
        raise PetsError("the backbone returns the same features for all training photos")

    monkeypatch.setattr(photo_rank, "fit_linear_probe", fail)
    config = config_of(epochs=0)
    manifest = ingest(config)
    assert run("train", config, manifest).probe_url is None
    assert "There is no linear probe to compare with: the backbone" in capsys.readouterr().out
    with pytest.raises(PetsError, match=r"train.recipe = probe, train.head = auto: the backbone"):
        run("train", config_of(recipe="probe"), manifest, base_lr=None)


def test_features_that_are_not_finite_are_an_error(config_of, run, monkeypatch):
    config = config_of(recipe="probe")
    manifest = ingest(config)
    monkeypatch.setattr(
        Classifier, "embed", lambda _, inputs: inputs.new_full((len(inputs), 256), math.nan)
    )
    with pytest.raises(PetsError, match=r"features that are not finite: check model.weights"):
        run("train", config, manifest, base_lr=None)


@pytest.mark.slow
def test_two_ranks_share_the_features_and_solve_the_same_probe(config_of, tmp_path):
    values = config_of(recipe="probe", batch_size=64).model_dump(exclude_defaults=True)
    manifest = ingest(PipelineConfig.model_validate(values))
    trained = {}
    for num_ranks in (1, 2):
        values |= {"launch": {"num_processes": num_ranks}, "cache_dir": str(tmp_path / "own")}
        values["cache_dir"] += str(num_ranks)
        config = PipelineConfig.model_validate(values)
        arguments = {"config": config, "manifest": manifest}
        arguments["run_url"] = str(tmp_path / f"run-{num_ranks}")
        launch(WorkRequest(stage="lr-find", **fine_tuning(arguments)), LRSuggestion)
        trained[num_ranks] = launch(WorkRequest(stage="train", **arguments), TrainResult)
        urls = {
            "model_url": trained[num_ranks].model_url,
            "probe_url": trained[num_ranks].probe_url,
        }
        predicted = launch(WorkRequest(stage="predict", **arguments, **urls), PredictResult)
        assert [each.name for each in predicted.baselines] == ["nearest neighbours"]
        assert not list((Path(config.cache_dir) / "features").glob("*.partial"))
    assert trained[2].num_processes == 2
    one, two = (load_model(trained[number].model_url).model for number in (1, 2))
    torch.testing.assert_close(two.head.state_dict(), one.head.state_dict(), atol=1e-3, rtol=0)


def fine_tuning(arguments: dict) -> dict:
    """Return the arguments with the recipe that needs a learning rate."""
    train = arguments["config"].train.model_copy(update={"recipe": "fine_tune"})
    return arguments | {"config": arguments["config"].model_copy(update={"train": train})}


def test_features_of_other_weights_are_not_used(config_of, run):
    """The backbone has no pretrained weights: each seed draws others."""
    manifest = ingest(config_of())
    for seed in range(2):
        run("lr-find", config_of(seed=seed), manifest)
    assert len(feature_files(config_of())) == 2
