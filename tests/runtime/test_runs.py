"""Run folders: settings, stored stage results, and data sets in use."""

import os
from pathlib import Path

import pytest
import yaml

from pets_core.config.pipeline import PipelineConfig
from pets_core.errors import PetsError
from pets_core.records.dataset import DatasetManifest, Run
from pets_core.records.training import LRSuggestion
from pets_core.runtime.request import WorkRequest
from pets_core.runtime.runs import (
    data_sets_in_use,
    find_run,
    load_result,
    load_run_settings,
    save_result,
    start_run,
)
from pets_core.storage.layout import SETTINGS

RESULT = LRSuggestion(
    minimum=1e-2, steepest=3.1e-3, valley=1e-4, slide=1e-3, chosen=3.1e-3, suggestion="steepest",
    num_steps=100, seconds=1.5, curve_url="curve.parquet", plot_url="curve.png",
)  # fmt: skip


@pytest.fixture
def request_of(tmp_path):
    def make(**groups) -> WorkRequest:
        config = PipelineConfig.model_validate({"store": str(tmp_path)} | groups)
        return WorkRequest(stage="lr-find", config=config, run_url=str(tmp_path / "runs/1"))

    return make


def test_saved_result_is_loaded(request_of):
    assert load_result(request_of(), LRSuggestion) is None
    save_result(request_of(), RESULT)
    assert load_result(request_of(), LRSuggestion) == RESULT


def test_changed_request_has_no_saved_result(request_of):
    save_result(request_of(), RESULT)
    assert load_result(request_of(train={"seed": 1}), LRSuggestion) is None
    for launch_only in ({"launch": {"num_processes": 2}}, {"cache_dir": "another"}):
        assert load_result(request_of(**launch_only), LRSuggestion) == RESULT
    evaluate = request_of().model_copy(update={"stage": "predict"})
    assert load_result(evaluate, LRSuggestion) is None


def test_result_of_an_earlier_version_is_found(request_of):
    """Its defaults are those of a large data set, and it had no baselines."""
    save_result(request_of(), RESULT)
    former = {"freeze_epochs": 1, "epochs": 2, "head": "new", "batch_size": 64, "lr_mult": 100.0,
              "unfrozen_lr_div": 5.0, "unfreeze_to": 0}  # fmt: skip
    assert load_result(request_of(train=former), LRSuggestion) == RESULT
    probe = {"recipe": "probe", "head": "probe", "freeze_epochs": 0, "epochs": 0, "batch_size": 16}
    assert load_result(request_of(train=probe), LRSuggestion) is None
    save_result(request_of(train={"recipe": "probe"}), RESULT)
    assert load_result(request_of(train=probe), LRSuggestion) == RESULT
    save_result(request_of(), RESULT)
    assert load_result(request_of(evaluate={"baselines": False}), LRSuggestion) == RESULT
    not_evaluated = request_of().model_copy(update={"is_evaluated": False})
    assert load_result(not_evaluated, LRSuggestion) == RESULT
    for train in ({"freeze_epochs": 2}, {"epochs": 3}, {"head": "probe", "freeze_epochs": 1}):
        assert load_result(request_of(train=train), LRSuggestion) is None


@pytest.mark.parametrize(
    ("targets", "train", "expected", "suggestion"),
    [
        ("class", {"head": "auto", "freeze_epochs": None}, ("new", 1, 2), "auto"),
        ("box", {}, ("new", 1, 2), "valley"),
        ("class", {"epochs": 7}, ("new", 1, 7), "auto"),
        ("class", {"head": "probe"}, ("probe", None, None), "auto"),
        ("class", {"recipe": "probe"}, (None, None, None), "auto"),
        ("class", {"optimizer": "adamw"}, (None, None, None), "auto"),
    ],
)
def test_run_of_an_earlier_version_keeps_its_recipe(tmp_path, targets, train, expected, suggestion):
    """With few photos the present defaults differ."""
    settings = {"train": train, "source": {"targets": targets}, "lr_find": {"suggestion": "auto"}}
    (tmp_path / SETTINGS).write_text(yaml.safe_dump(settings))
    found = load_run_settings(str(tmp_path))
    names = ("head", "freeze_epochs", "epochs")
    assert tuple(found["train"].get(name) for name in names) == expected
    assert found["lr_find"]["suggestion"] == suggestion
    assert found["train"]["unfreeze_to"] == 0


def test_a_run_keeps_its_first_trained_group(tmp_path):
    (tmp_path / SETTINGS).write_text(yaml.safe_dump(PipelineConfig().model_dump(mode="json")))
    assert load_run_settings(str(tmp_path))["train"]["unfreeze_to"] is None


def make_data_set(store, fingerprint: str) -> DatasetManifest:
    url = store / "datasets/photos" / fingerprint
    url.mkdir(parents=True)
    (url / "manifest.json").write_text("{}")
    return DatasetManifest(
        name="photos", fingerprint=fingerprint, url=str(url), source_url="photos", vocabulary=(),
        splits={}, num_quarantined=0, quarantine_reasons={},
    )  # fmt: skip


def test_resumed_run_uses_its_original_data_set(tmp_path):
    manifest, url = make_data_set(tmp_path, "a"), str(tmp_path / "runs/1")
    assert find_run(url, Run) is None
    assert start_run(PipelineConfig(), Run(url=url + "/", manifest=manifest)) == Run(
        url=url, manifest=manifest
    )
    assert find_run(url + "/", Run) == Run(url=url, manifest=manifest)
    Path(manifest.url, "manifest.json").unlink()
    with pytest.raises(PetsError, match="uses photos a, which was removed from the store"):
        find_run(url, Run)


def test_run_settings_hold_an_absolute_store_path(tmp_path, monkeypatch):
    url = str(tmp_path / "runs/1")
    monkeypatch.chdir(tmp_path)
    start_run(PipelineConfig(store="store"), Run(url=url, manifest=make_data_set(tmp_path, "a")))
    monkeypatch.chdir("/")
    assert load_run_settings(url)["store"] == str(tmp_path / "store")


def test_data_sets_of_unfinished_runs_are_in_use(tmp_path):
    """Runs with a checkpoint count at any age, other runs only while they are recent."""
    for name, files, is_old in [
        ("started", (), False),
        ("abandoned", (), True),
        ("killed", ("checkpoints/step-000000004/checkpoint.json",), True),
        ("trained", ("checkpoints/step-000000004/checkpoint.json", "stages/train.json"), True),
        ("waiting", ("stages/train.request.json",), True),
        ("completed", ("stages/train.request.json", "stages/train.json"), True),
        ("evaluated", ("stages/train.json", "stages/predict.json"), False),
    ]:
        run = tmp_path / "runs" / name
        start_run(PipelineConfig(), Run(url=str(run), manifest=make_data_set(tmp_path, name)))
        for file in files:
            (run / file).parent.mkdir(parents=True, exist_ok=True)
            (run / file).write_text("{}")
        for path in [run / "dataset.json", *run.glob("stages/*")] if is_old else []:
            os.utime(path, (1, 1))
    assert data_sets_in_use(str(tmp_path), 3600.0) == {"started", "killed", "waiting"}
    assert data_sets_in_use(str(tmp_path / "nothing"), 3600.0) == set()
