"""Trackers receive every step and epoch; each is tested if its package is installed."""

import json
import struct
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pets_core.config.pipeline import PipelineConfig
from pets_core.data.ingest.commit import ingest
from pets_core.records.training import TrainResult
from pets_core.runtime.launcher import launch
from pets_core.runtime.request import WorkRequest


def train_with_tracker(config: PipelineConfig, run_url: Path, tracker: str) -> TrainResult:
    """Train for a few steps with a tracker."""
    settings = {
        "model": {"backbone": "test_efficientnet", "weights": "none", "image_size": 64},
        "train": {
            "batch_size": 32,
            "freeze_epochs": 1,
            "epochs": 1,
            "mixed_precision": "no",
            "log_with": tracker,
        },
    }
    config = PipelineConfig.model_validate(config.model_dump(exclude_defaults=True) | settings)
    request = WorkRequest(
        stage="train", config=config, run_url=str(run_url), manifest=ingest(config), base_lr=1e-2
    )
    return launch(request, TrainResult)


def assert_logged(values: dict[str, list[float]], result: TrainResult) -> None:
    history = pq.read_table(result.history_url)
    for name in ("loss", "grad_norm", "momentum"):
        assert values[f"train/{name}"] == pytest.approx(history[name].to_pylist(), rel=1e-5)
    assert "train/lr_group_0" in values
    valid_losses = [epoch.valid_loss for epoch in result.epochs]
    assert values["valid/loss"] == pytest.approx(valid_losses, rel=1e-5)


@pytest.mark.slow
def test_tensorboard(small_config, tmp_path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = train_with_tracker(small_config, tmp_path / "run", "tensorboard")
    values = {}
    for path in (tmp_path / "run").rglob("events.out.tfevents.*"):
        events = EventAccumulator(str(path))
        events.Reload()
        for tag in events.Tags()["scalars"]:
            values[tag] = [event.value for event in events.Scalars(tag)]
    assert_logged(values, result)


@pytest.mark.slow
def test_mlflow(small_config, tmp_path, monkeypatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    result = train_with_tracker(small_config, tmp_path / "run", "mlflow")
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("pets")
    (run,) = client.search_runs([experiment.experiment_id])
    values = {
        name: [metric.value for metric in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
    }
    assert_logged(values, result)


def records(data: bytes) -> Iterator[bytes]:
    """Yield the records of a W&B offline file: a header of 7 bytes, then LevelDB's log format."""
    offset, record, block = 7, b"", 32_768
    while offset + 7 <= len(data):
        left = block - offset % block
        if left < 7:
            offset += left
            continue
        length, kind = struct.unpack_from("<HB", data, offset + 4)
        record += data[offset + 7 : offset + 7 + length]
        offset += 7 + length
        # Type 1 is a full record, type 4 the last part of one.
        if kind in (1, 4):
            yield record
            record = b""


@pytest.mark.slow
def test_wandb(small_config, tmp_path, monkeypatch) -> None:
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    result = train_with_tracker(small_config, tmp_path / "run", "wandb")
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    values = defaultdict(list)
    for data in records(path.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        for item in record.history.item:
            values[item.key or "/".join(item.nested_key)].append(json.loads(item.value_json))
    assert_logged(values, result)
