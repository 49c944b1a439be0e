"""Random predictions of each kind, their evaluation, and stored photos."""

from collections.abc import Callable
from functools import partial

import pyarrow.parquet as pq
import pytest
from made_predictions import draw_classes, draw_numbers, draw_tags

from pets_core.config.pipeline import PipelineConfig
from pets_core.data.ingest.commit import ingest
from pets_core.evaluation.predictions import Predictions
from pets_core.records.dataset import DatasetManifest
from pets_core.records.evaluation import EvalReport
from pets_core.records.inference import PredictResult
from pets_core.targets.evaluate import evaluate

DRAW = {"class": draw_classes, "tags": draw_tags}


@pytest.fixture
def draw_kind() -> Callable[..., Predictions]:
    """Return a function that draws predictions of a kind; see `made_predictions`."""

    def drawn(kind: str = "numbers", num_rows: int = 60, **fields) -> Predictions:
        return DRAW.get(kind, partial(draw_numbers, kind))(num_rows, **fields)

    return drawn


@pytest.fixture
def evaluated(tmp_path, write) -> Callable[..., EvalReport]:
    """Return a function that evaluates predictions for a run, by default `run-1`."""

    def evaluated_predictions(
        predictions: Predictions,
        validation: Predictions | None = None,
        *,
        settings: dict[str, object] | None = None,
        run: str = "run-1",
        **keywords,
    ) -> EvalReport:
        info = predictions.info
        predicted = PredictResult(
            targets=info.targets, model_url=info.model_url,
            predictions_url=write(predictions, f"{run}.parquet"),
            valid_url=write(validation, f"{run}-valid.parquet") if validation else None,
            photos_per_second=9.0,
        )  # fmt: skip
        store = str(tmp_path / "store")
        config = PipelineConfig.model_validate({"store": store} | (settings or {}))
        return evaluate(config, f"{store}/runs/{run}", predicted, **keywords)

    return evaluated_predictions


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
def draw_stored(draw_kind, stored) -> Callable[..., Predictions]:
    """Return a function that draws predictions of the stored photos."""
    ids = pq.read_table(f"{stored.url}/photos.parquet")["id"].to_pylist()

    def drawn(kind: str, **fields) -> Predictions:
        predictions = draw_kind(
            kind, len(ids), dataset_url=stored.url, dataset_fingerprint=stored.fingerprint,
            **fields,
        )  # fmt: skip
        predictions.ids[:] = ids
        return predictions

    return drawn
