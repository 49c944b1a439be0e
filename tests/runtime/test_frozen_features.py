"""Frozen epochs on cached features, in whole stages."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from pets_core.config.pipeline import PipelineConfig
from pets_core.data.ingest.commit import ingest
from pets_core.data.loading.transforms import Augment
from pets_core.models.classifier import Classifier
from pets_core.models.package import load_model
from pets_core.records.training import TrainResult
from pets_core.runtime import worker
from pets_core.runtime.photo_rank import PhotoRank
from pets_core.runtime.request import WorkRequest
from pets_core.training.interruption import Interrupted, Interruption

TIMINGS = ["samples_per_second", "data_seconds"]


@pytest.fixture
def config_of(small_config):
    """Return a function of settings by group that returns all settings."""

    def config(**groups) -> PipelineConfig:
        values = small_config.model_dump(exclude_defaults=True)
        values["model"] = {"backbone": "test_efficientnet", "weights": "none", "image_size": 64}
        values["evaluate"] = {"baselines": False}
        values["train"] = {
            "batch_size": 32, "freeze_epochs": 2, "epochs": 1, "mixed_precision": "no",
        }  # fmt: skip
        for group, settings in groups.items():
            values[group] = values.get(group, {}) | settings
        return PipelineConfig.model_validate(values)

    return config


def train(config: PipelineConfig, folder: Path) -> TrainResult:
    """Train in this process."""
    request = WorkRequest(
        stage="train", config=config, manifest=ingest(config), base_lr=1e-2, run_url=str(folder)
    )
    return worker.run(request)


def feature_files(config: PipelineConfig) -> list[Path]:
    return sorted((Path(config.cache_dir) / "features").glob("*.f32"))


@pytest.mark.parametrize(
    ("targets", "settings"),
    [
        ("class", {"sampling": "balanced"}),
        ("tags", {}),
        ("box", {}),
        ("class", {"ema_decay": 0.9, "keep": "best"}),
    ],
    ids=["balanced classes", "tags", "boxes", "moving average"],
)
def test_model_is_that_of_photos_without_augmentation(
    config_of, tmp_path, monkeypatch, targets, settings
):
    monkeypatch.setattr(Augment, "__call__", lambda self, photos, **_: self._empty(photos))
    monkeypatch.setattr(
        Augment, "maps", lambda self, side, **given: self._empty.maps(side, **given)
    )
    models, histories, epochs = [], [], []
    for on_features in (True, False):
        chosen = settings | {"frozen_on_features": on_features}
        config = config_of(source={"targets": targets}, train=chosen)
        config = config.model_copy(update={"cache_dir": str(tmp_path / f"cache-{on_features}")})
        trained = train(config, tmp_path / str(on_features))
        models.append(load_model(trained.model_url).model.state_dict())
        histories.append(pq.read_table(trained.history_url).to_pandas())
        epochs.append([(e.phase, e.epoch, e.train_loss, e.valid_loss) for e in trained.epochs])
        assert len(feature_files(config)) == 2 * on_features, "training and validation photos"
    for name, value in models[0].items():
        torch.testing.assert_close(value, models[1][name], rtol=1e-3, atol=1e-4, msg=name)
    rates = [history.filter(like="lr_group_") for history in histories]
    assert rates[0].equals(rates[1])
    assert histories[0].loss.tolist() == pytest.approx(histories[1].loss.tolist(), rel=1e-3)
    for on_features, on_photos in zip(*epochs, strict=True):
        assert on_features[:2] == on_photos[:2]
        assert on_features[2:] == pytest.approx(on_photos[2:], rel=1e-3)


def test_frozen_epochs_do_not_use_the_body(config_of, tmp_path, monkeypatch):
    config = config_of(train={"epochs": 0})
    first = train(config, tmp_path / "first")
    monkeypatch.setattr(Classifier, "embed", None)
    assert train(config, tmp_path / "second").epochs[-1].valid_loss == first.epochs[-1].valid_loss


@pytest.mark.parametrize(
    "settings",
    [
        {"train": {"frozen_on_features": False}},
        {"train": {"freeze_to": -2}},
        {"train": {"freeze_epochs": 0}},
        {"transform": {"mixup_alpha": 0.4}},
        {"transform": {"cutmix_alpha": 1.0}},
        {"launch": {"decode_cache_gib": 1e-6}},
    ],
    ids=str,
)
def test_frozen_epochs_use_photos_where_features_do_not_suffice(config_of, settings):
    config = config_of(**settings)
    rank = PhotoRank(WorkRequest(stage="train", config=config, manifest=ingest(config)))
    assert rank.frozen_inputs(rank.model()) is None
    assert not feature_files(config)


@pytest.mark.parametrize("batch", [1, 2, 7], ids=["frozen", "validation", "unfrozen"])
def test_stopped_training_resumes_exactly(config_of, tmp_path, monkeypatch, batch):
    """Stopped in the first epoch, in its validation, and after unfreezing."""
    config = config_of(model={"dropout": 0.5}, train={"ema_decay": 0.9})
    whole = train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(Interruption, "should_continue", lambda self, number: number < batch)
        with pytest.raises(Interrupted):
            train(config, tmp_path / "stopped")
    resumed = train(config, tmp_path / "stopped")
    models = [load_model(trained.model_url).model.state_dict() for trained in (whole, resumed)]
    assert all(map(torch.equal, models[0].values(), models[1].values()))
    histories = [pq.read_table(trained.history_url).to_pandas() for trained in (whole, resumed)]
    assert histories[0].drop(columns=TIMINGS).equals(histories[1].drop(columns=TIMINGS))


def test_run_of_an_earlier_version_resumes_on_features(config_of, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Interruption, "should_continue", lambda self, number: number < 1)
        with pytest.raises(Interrupted):
            train(config_of(train={"frozen_on_features": False}), tmp_path)
    config = config_of()
    assert not feature_files(config)
    assert [epoch.phase for epoch in train(config, tmp_path).epochs] == 2 * ["frozen"] + [
        "unfrozen"
    ]
    assert feature_files(config)
