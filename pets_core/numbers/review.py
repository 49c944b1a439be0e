"""All that people look at of a model of numbers, made of its predictions without torch."""

from __future__ import annotations

import time

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pets_core import plots, storage
from pets_core.config.pipeline import PipelineConfig
from pets_core.data.dataset import write_table
from pets_core.evaluation.contamination import trained_on
from pets_core.numbers.gallery import photo_sizes, worst_errors, write_worst
from pets_core.numbers.measures import (
    baseline_of,
    box_iou,
    interval_of_errors,
    measure_numbers,
    pixel_distances,
    rmse,
)
from pets_core.numbers.predictions import NumberPredictions, read_number_predictions
from pets_core.numbers.records import NumbersReport
from pets_core.records.evaluation import PredictResult
from pets_core.storage.csv import table_csv

__all__ = ["review_numbers"]

_FOUND = 0.5
_SCHEMA = pa.schema(
    [("name", pa.string()), ("unit", pa.string()),
     *((name, pa.float64()) for name in ("mae", "rmse", "bias", "r2", "median", "p95",
                                         "baseline_mae", "baseline_rmse"))]
)  # fmt: skip


def review_numbers(config: PipelineConfig, run_url: str, predicted: PredictResult) -> NumbersReport:
    """Judge predictions and store everything under `<run>/evaluation`, the report last.

    Args:
        config: Settings.
        run_url: Folder of the run.
        predicted: The file of predictions.

    Raises:
        PetsError: The predictions are damaged, or not finite.
    """
    began = time.monotonic()
    predictions = read_number_predictions(predicted.predictions_url)
    info, actual, said = predictions.info, predictions.targets, predictions.predicted
    points = info.targets == "points"
    sizes = photo_sizes(info.dataset_url, predictions.ids) if points else None
    mae, overall = interval_of_errors(actual, said)
    seen = trained_on(config.store, predicted.model_url, predictions)
    report = NumbersReport(
        targets=info.targets,
        model_url=predicted.model_url,
        split=info.split,
        num_rows=len(predictions),
        mae=mae,
        rmse=overall,
        baseline_rmse=rmse(baseline_of(info.numbers, len(actual)) - actual),
        numbers=measure_numbers(info.numbers, actual, said),
        num_trained_on=None if seen is None else int(seen.sum()),
        predictions_url=predicted.predictions_url,
        url=storage.join(run_url, "evaluation"),
        photos_per_second=predicted.photos_per_second,
        seconds=0.0,
        **_of_places(predictions, sizes),
    )
    _write_table(report)
    labels, units = [n.name for n in info.numbers], [n.unit for n in info.numbers]
    storage.write_bytes(report.file("residuals.png"), plots.residuals(labels, units, actual, said))
    write_worst(report.file("gallery.parquet"), worst_errors(predictions, sizes))
    report = report.model_copy(update={"seconds": time.monotonic() - began})
    storage.write_bytes(report.file("report.json"), report.model_dump_json(indent=2).encode())
    return report


def _of_places(predictions: NumberPredictions, sizes: NDArray[np.int64] | None) -> dict[str, float]:
    """What is told of a box or of points alone, by its name in the report."""
    info, actual, said = predictions.info, predictions.targets, predictions.predicted
    means = baseline_of(info.numbers, len(actual))
    if info.targets == "box":
        iou = box_iou(actual, said)
        return {
            "mean_iou": float(iou.mean()),
            "share_iou_half": float((iou >= _FOUND).mean()),
            "baseline_mean_iou": float(box_iou(actual, means).mean()),
        }
    if sizes is None:
        return {}
    median, p95 = np.quantile(pixel_distances(actual, said, sizes), (0.5, 0.95))
    return {
        "median_pixels": float(median),
        "p95_pixels": float(p95),
        "baseline_median_pixels": float(np.median(pixel_distances(actual, means, sizes))),
    }


def _write_table(report: NumbersReport) -> None:
    table = pa.Table.from_pylist([number.model_dump() for number in report.numbers], _SCHEMA)
    write_table(report.file("numbers.parquet"), table)
    storage.write_bytes(report.file("numbers.csv"), table_csv(table))
