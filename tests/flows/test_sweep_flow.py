"""Resuming a sweep whose process was killed, with the same trials and none trained twice."""

import json
import logging
import sys
from pathlib import Path

import processes
import pytest
import yaml

from pets_core.config.pipeline import PipelineConfig
from pets_core.records.training import Trial
from pets_core.training.sweep import Study

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc"),
]

BACKBONES = ["test_efficientnet", "test_byobnet"]


@pytest.fixture
def config(small_config) -> PipelineConfig:
    """Settings of three short trials; the second and third depend on earlier results."""
    settings = {
        "model": {"weights": "none", "image_size": 32},
        "train": {
            "batch_size": 8,
            "freeze_epochs": 1,
            "epochs": 5,
            "mixed_precision": "no",
            "checkpoint_steps": 5,
            "checkpoint_seconds": 0,
        },
        "sweep": {"backbones": BACKBONES, "num_trials": 3, "num_random": 1},
        "launch": {"num_threads": 1},
    }
    return PipelineConfig.model_validate(small_config.model_dump(exclude_defaults=True) | settings)


def settings_of(folder: Path) -> tuple[str, float]:
    """Return the backbone and the base learning rate of a trial's training."""
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    return settings["model"]["backbone"], settings["train"]["base_lr"]


def modification_times(folder: Path) -> dict[str, int]:
    """Return the modification time of each output file of a training."""
    files = [folder / "history.parquet", *folder.glob("model/*"), *folder.glob("checkpoints/*/*")]
    return {str(file): file.stat().st_mtime_ns for file in files}


def test_killed_sweep_resumes_with_the_same_trials(server, config, tmp_path) -> None:
    file, runs = tmp_path / "settings.yaml", tmp_path / "store/runs"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_defaults=True)))
    with server.running("-m", "pets", "sweep", str(file)) as sweep:
        (found,) = server.wait_for(lambda: [*runs.glob("*-001-0/checkpoints/*/*.json")][:1])
        below = processes.descendants(sweep.pid)
        assert processes.launchers(sweep.pid), "the second trial is running"
        sweep.kill()
    second = found.parents[2]
    folder = runs / second.name.removesuffix("-001-0")
    first = runs / f"{folder.name}-000-0"
    assert processes.wait_for_exit(below)
    assert not (second / "model/model.json").exists(), "the second trial is unfinished"
    started, times = [settings_of(first), settings_of(second)], modification_times(first)
    server.run("-m", "pets", "sweep", "--resume", folder)
    kept = json.loads((folder / "sweep.json").read_text())["trials"]
    trials = sorted(map(Trial.model_validate, kept), key=lambda trial: trial.number)
    assert [trial.number for trial in trials] == [0, 1, 2]
    assert [(trial.backbone, trial.base_lr) for trial in trials[:2]] == started
    assert not any(trial.error for trial in trials)
    assert modification_times(first) == times, "the first trial is not trained again"
    warnings = server.request("logs/filter", {"logs": {"level": {"ge_": logging.WARNING}}})
    (resumed,) = [w["message"] for w in warnings if "Resuming training from" in w["message"]]
    assert second.name in resumed
    # The third trial is the one that an uninterrupted sweep suggests.
    study = Study(config)
    for trial in trials:
        (suggested,) = study.suggest(1)
        assert (suggested.backbone, suggested.base_lr) == (trial.backbone, trial.base_lr)
        study.record(trial)
