"""All that people look at of a model of tags, made of its predictions without torch."""

from __future__ import annotations

import time

import numpy as np
import pyarrow as pa

from pets_core import plots, storage
from pets_core.config.pipeline import PipelineConfig
from pets_core.data.dataset import write_table
from pets_core.evaluation.contamination import trained_on
from pets_core.records.evaluation import PredictResult
from pets_core.storage.csv import table_csv
from pets_core.tags.gallery import top_losses, write_top_losses
from pets_core.tags.measures import (
    accuracy_multi,
    exact_match,
    f1_scores,
    mean_average_precision,
    measure_tags,
    micro_f1_interval,
)
from pets_core.tags.predictions import TagPredictions, read_tag_predictions
from pets_core.tags.records import TagsReport
from pets_core.tags.thresholds import (
    Thresholds,
    choose_thresholds,
    read_thresholds,
    threshold_curve,
    write_thresholds,
)

__all__ = ["review_tags"]

_SCHEMA = pa.schema(
    [("name", pa.string()), ("support", pa.int64()),
     *((name, pa.float64()) for name in ("average_precision", "precision", "recall", "f1",
                                         "threshold"))]
)  # fmt: skip


def review_tags(config: PipelineConfig, run_url: str, predicted: PredictResult) -> TagsReport:
    """Judge predictions and store everything under `<run>/evaluation`, the report last.

    Args:
        config: Settings.
        run_url: Folder of the run.
        predicted: The files of predictions.

    Raises:
        PetsError: The predictions are damaged, or no probabilities.
    """
    began = time.monotonic()
    predictions = read_tag_predictions(predicted.predictions_url)
    validation = predictions if predicted.valid_url == predicted.predictions_url else None
    if predicted.valid_url and validation is None:
        validation = read_tag_predictions(predicted.valid_url)
    thresholds = _thresholds(config, run_url, predicted, predictions, validation)
    targets, given = predictions.targets, thresholds.given(predictions.probabilities)
    measures = measure_tags(
        predictions.info.tags, targets, predictions.probabilities, given, thresholds.values
    )
    seen = trained_on(config.store, predicted.model_url, predictions)
    report = TagsReport(
        model_url=predicted.model_url,
        split=predictions.info.split,
        num_rows=len(predictions),
        num_untagged=int((~targets.any(1)).sum()),
        mean_average_precision=mean_average_precision(measures),
        micro_f1=micro_f1_interval(targets, given),
        macro_f1=f1_scores(targets, given)[1],
        accuracy_multi=accuracy_multi(targets, given),
        exact_match=exact_match(targets, given),
        loss=float(predictions.losses.mean(dtype=np.float64)),
        threshold_kind=thresholds.kind,
        num_validation=thresholds.num_photos,
        has_curve=validation is not None,
        tags=measures,
        num_trained_on=None if seen is None else int(seen.sum()),
        predictions_url=predicted.predictions_url,
        url=storage.join(run_url, "evaluation"),
        photos_per_second=predicted.photos_per_second,
        seconds=0.0,
    )
    _write_tables(report)
    if validation:
        _write_curve(report, thresholds, validation)
    write_top_losses(report.file("gallery.parquet"), top_losses(predictions, given))
    report = report.model_copy(update={"seconds": time.monotonic() - began})
    storage.write_bytes(report.file("report.json"), report.model_dump_json(indent=2).encode())
    return report


def _thresholds(
    config: PipelineConfig,
    run_url: str,
    predicted: PredictResult,
    predictions: TagPredictions,
    validation: TagPredictions | None,
) -> Thresholds:
    """The model's own thresholds; where it has none, those that the validation photos ask for.

    A model that this run trained keeps them.
    """
    own = predicted.model_url.startswith(f"{run_url.rstrip('/')}/")
    tags = predictions.info.tags
    # Those of an earlier attempt of this run may have been chosen by another setting.
    known = None if own else read_thresholds(predicted.model_url, tags)
    if known is not None:
        return known
    if validation is None:
        return Thresholds.halves(tags)
    kind = config.evaluate.threshold
    chosen = choose_thresholds(validation.targets, validation.probabilities, tags, kind)
    if own:
        write_thresholds(predicted.model_url, chosen)
    return chosen


def _write_tables(report: TagsReport) -> None:
    table = pa.Table.from_pylist([tag.model_dump() for tag in report.tags], _SCHEMA)
    write_table(report.file("tags.parquet"), table)
    storage.write_bytes(report.file("tags.csv"), table_csv(table))


def _write_curve(report: TagsReport, thresholds: Thresholds, validation: TagPredictions) -> None:
    """What each threshold comes to on these photos, and where those in use lie."""
    curve = threshold_curve(validation.targets, validation.probabilities)
    write_table(report.file("thresholds.parquet"), pa.table(curve.model_dump()))
    drawn = plots.threshold_curve(
        curve.thresholds,
        {"micro F1": curve.micro_f1, "macro F1": curve.macro_f1,
         "accuracy_multi": curve.accuracy_multi},
        thresholds.values,
    )  # fmt: skip
    storage.write_bytes(report.file("thresholds.png"), drawn)
