"""Layer groups that stay frozen after unfreezing, in whole stages."""

import json
import logging
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.torch import load_file, save_file

from pets_core.config.pipeline import PipelineConfig
from pets_core.data.ingest.commit import ingest
from pets_core.errors import PetsError
from pets_core.models.backbones import body_groups, create_body
from pets_core.records.dataset import Run
from pets_core.records.training import LRSuggestion, TrainResult
from pets_core.runtime.launcher import launch
from pets_core.runtime.request import WorkRequest
from pets_core.runtime.runs import start_run
from tasks.stages import choose_recipe


@pytest.fixture
def config(small_config, tmp_path) -> PipelineConfig:
    """Settings of a backbone with 6 layer groups and weights from a file."""
    weights = tmp_path / "body.safetensors"
    save_file(create_body("test_efficientnet", "none", 64).state_dict(), weights)
    settings = {
        "model": {"backbone": "test_efficientnet", "weights": str(weights), "image_size": 64},
        "train": {"batch_size": 32, "freeze_epochs": 1, "epochs": 1, "mixed_precision": "no"},
        "evaluate": {"baselines": False},
    }
    stored = small_config.model_dump(exclude_defaults=True)
    return PipelineConfig.model_validate(stored | settings)


def with_train(config: PipelineConfig, **train: object) -> PipelineConfig:
    return config.model_copy(update={"train": config.train.model_copy(update=train)})


def train(config: PipelineConfig, run_url: Path) -> TrainResult:
    request = WorkRequest(
        stage="train", config=config, run_url=str(run_url), manifest=ingest(config), base_lr=1e-2
    )
    return launch(request, TrainResult)


@pytest.mark.parametrize(("unfreeze_to", "first"), [(None, 3), (0, 0), (-2, 5)])
def test_groups_before_the_first_keep_their_weights(config, tmp_path, unfreeze_to, first):
    result = train(with_train(config, unfreeze_to=unfreeze_to), tmp_path / "run")
    groups = "all" if first == 0 else f"the last {7 - first} of"
    assert result.unfrozen_text == f"{groups} 7 layer groups"
    before = load_file(config.model.weights)
    after = load_file(f"{result.model_url}/model.safetensors")
    body = create_body("test_efficientnet", "none", 64)
    for number, group in enumerate(body_groups(body)):
        is_equal = all((before[name] == after[f"body.{name}"]).all() for name in group)
        assert is_equal == (number < first), number
    history = pq.read_table(result.history_url).to_pandas()
    rates = history[history.phase == "unfrozen"].filter(like="lr_group_")
    assert [column for column in rates if rates[column].notna().any()] == [
        f"lr_group_{number}" for number in range(first, 7)
    ]


def test_a_checkpoint_of_an_earlier_version_needs_all_groups(config, tmp_path):
    run = tmp_path / "run"
    train(with_train(config, unfreeze_to=0), run)
    records = list(run.glob("checkpoints/*/checkpoint.json"))
    assert records
    for record in records:
        assert "train.unfreeze_to" not in json.loads(record.read_text())["resume_key"]
    with pytest.raises(PetsError, match=r"of another training: train\.unfreeze_to"):
        train(config, run)


def test_a_run_of_an_earlier_version_continues_to_train_all_groups(config, monkeypatch):
    """Also in a retry of its flow run, whose parameters do not have the setting."""
    monkeypatch.setattr("tasks.stages.get_run_logger", logging.getLogger)
    run = start_run(config, Run(url=f"{config.store}/runs/a", manifest=ingest(config)))
    assert choose_recipe(config, run).train.unfreeze_to is None
    path = Path(run.url, "config.yaml")
    settings = yaml.safe_load(path.read_text())
    del settings["train"]["unfreeze_to"]
    path.write_text(yaml.safe_dump(settings))
    assert choose_recipe(config, run).train.unfreeze_to == 0


def test_the_finder_accepts_the_recipe_probe(config, tmp_path):
    probe = with_train(config, recipe="probe", freeze_epochs=0, epochs=0)
    request = WorkRequest(
        stage="lr-find", config=probe, run_url=str(tmp_path / "run"), manifest=ingest(config)
    )
    assert launch(request, LRSuggestion).chosen > 0
