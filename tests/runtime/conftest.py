"""Evaluated runs without a training, and the command line."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from made_predictions import draw_classes, draw_numbers, draw_tags, write_drawn

from pets.cli import main as cli
from pets_core.config.pipeline import PipelineConfig
from pets_core.data.dataset import dataset_root
from pets_core.records.dataset import DatasetManifest, Run
from pets_core.records.inference import PredictResult
from pets_core.records.training import EpochMetrics, TrainResult
from pets_core.runtime.request import WorkRequest
from pets_core.runtime.runs import save_result, start_run
from pets_core.targets.evaluate import evaluate

DRAW = {"class": draw_classes, "tags": draw_tags}


@pytest.fixture
def add_run(tmp_path) -> Callable[..., str]:
    """Function that adds a run to the store, by default evaluated, and returns its folder."""
    store = tmp_path / "store"

    def add(
        run_id: str,
        kind: str = "class",
        stage: str = "evaluated",
        predicted_by: int = 0,
        dataset: str = "pets",
        **settings,
    ) -> str:
        config = PipelineConfig.model_validate({"store": str(store), **settings})
        manifest = DatasetManifest.model_construct(
            name=dataset,
            fingerprint="f" * 20,
            splits={},
            targets=kind,
            url=dataset_root("s", dataset),
        )
        run = start_run(config, Run(url=str(store / "runs" / run_id), manifest=manifest))
        # The order of the runs.
        order = 1_700_000_000 + len(list((store / "runs").iterdir()))
        os.utime(Path(run.url, "config.yaml"), (order, order))
        if stage == "started":
            return run.url
        if stage == "interrupted":
            Path(run.url, "checkpoints").mkdir()
            return run.url
        (Path(run.url) / "model").mkdir()
        (Path(run.url) / "model/model.json").touch()
        epoch = EpochMetrics(
            phase="frozen", epoch=0, train_loss=0.5, valid_loss=0.4, valid_metric=0.1, seconds=2.0,
            photos_per_second=9.0,
        )  # fmt: skip
        trained = TrainResult(
            model_url=f"{run.url}/model", last_model_url="", history_url="", plot_url="",
            base_lr=1e-3, mixed_precision="no", device="cpu", num_processes=1, num_steps=9,
            epochs=(epoch,), seconds=4.5,
        )  # fmt: skip
        save_result(
            WorkRequest(stage="train", config=config, run_url=run.url, manifest=manifest), trained
        )
        if stage == "trained":
            return run.url
        draw = DRAW.get(kind, partial(draw_numbers, kind))
        predictions = draw(
            40, predicted_by=predicted_by, off=0.3, model_url=f"{run.url}/model",
            dataset_name=dataset,
        )  # fmt: skip
        (Path(run.url) / "evaluation").mkdir()
        url = write_drawn(f"{run.url}/evaluation/predictions.parquet", predictions)
        predicted = PredictResult(
            targets=kind, model_url=f"{run.url}/model", predictions_url=url, photos_per_second=9.0
        )
        evaluate(config, run.url, predicted)
        return run.url

    add.store = str(store)
    return add


@pytest.fixture
def pets(capsys) -> Callable[..., str]:
    """Function that runs a command and returns its output."""

    def run(*words: object) -> str:
        cli.main([str(word) for word in words])
        return capsys.readouterr().out

    return run
