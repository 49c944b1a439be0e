"""Predictions of numbers drawn by chance, files of them, and photos that they are of."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pets_core.config.pipeline import PipelineConfig
from pets_core.data.ingest.commit import ingest
from pets_core.numbers.predictions import (
    NumberPredictions,
    NumberPredictionsInfo,
    write_number_predictions,
)
from pets_core.records.dataset import DatasetManifest, NumberInfo

NAMES = {"numbers": ["age", "weight"], "points": ["eye x", "eye y"],
         "box": ["xmin", "ymin", "xmax", "ymax"]}  # fmt: skip


@pytest.fixture
def draw() -> Callable[..., NumberPredictions]:
    """Draw predictions of `num_rows` photos, off by about `off`."""

    def drawn(
        targets: str = "numbers", num_rows: int = 40, *, off: float = 0.1, seed: int = 0, **about
    ) -> NumberPredictions:
        names = about.pop("names", NAMES[targets])
        units = about.pop("units", [""] * len(names))
        random = np.random.default_rng(seed)
        actual = random.uniform(-0.9, 0.9, (num_rows, len(names)))
        if targets == "box":
            actual = np.concatenate([-np.abs(actual[:, :2]), np.abs(actual[:, 2:]) + 0.05], 1)
        said = {
            "targets": targets, "split": "test", "model_url": "a/model", "backbone": "resnet34",
            "image_size": 64, "dataset_url": "nowhere/pets/f", "dataset_name": "pets",
            "dataset_fingerprint": "f",
            "numbers": tuple(NumberInfo(name=name, unit=unit, mean=0.1, std=0.5)
                             for name, unit in zip(names, units, strict=True)),
        } | about  # fmt: skip
        info = NumberPredictionsInfo.model_validate(said)
        ids = [f"photo-{row}" for row in range(num_rows)]
        predicted = actual + random.normal(0, off, actual.shape)
        return NumberPredictions(info, ids, actual.astype("f4"), predicted.astype("f4"))

    return drawn


@pytest.fixture
def write(tmp_path: Path) -> Callable[[NumberPredictions], str]:
    """Write predictions as an evaluation does; returns the file's path."""

    def written(predictions: NumberPredictions) -> str:
        url = str(tmp_path / "predictions.parquet")
        write_number_predictions(
            url, predictions.info, predictions.ids, predictions.targets, predictions.predicted
        )
        return url

    return written


@pytest.fixture
def stored(tmp_path, write_folder) -> DatasetManifest:
    """A data set of 12 photos, 24 x 16 pixels each."""
    source = write_folder(tmp_path / "source", {"cat": 6, "dog": 6})
    return ingest(
        PipelineConfig.model_validate(
            {"store": str(tmp_path / "store"), "cache_dir": str(tmp_path / "cache"),
             "source": {"url": str(source), "valid_fraction": 0.5}, "ingest": {"num_workers": 1}}
        )
    )  # fmt: skip


@pytest.fixture
def judged(draw, stored) -> Callable[..., NumberPredictions]:
    """Draw predictions of the photos that are stored."""
    ids = pq.read_table(f"{stored.url}/photos.parquet")["id"].to_pylist()

    def drawn(targets: str, **about) -> NumberPredictions:
        predictions = draw(
            targets, len(ids), dataset_url=stored.url, dataset_fingerprint=stored.fingerprint,
            **about,
        )  # fmt: skip
        predictions.ids[:] = ids
        return predictions

    return drawn
