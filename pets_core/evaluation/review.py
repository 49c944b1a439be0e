"""All that people look at of an evaluation, made of its predictions without model or torch."""

from __future__ import annotations

import csv
import io
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property

import numpy as np
import pyarrow as pa
import yaml
from numpy.typing import NDArray

from pets_core import plots, storage
from pets_core.config import PipelineConfig
from pets_core.data.dataset import write_table
from pets_core.errors import PetsError
from pets_core.evaluation.calibration import Reliability, calibrate
from pets_core.evaluation.card import model_card
from pets_core.evaluation.compare import compare, judge
from pets_core.evaluation.confusion import cluster_order, confusion_counts, most_confused
from pets_core.evaluation.gallery import Gallery, collect, write_gallery
from pets_core.evaluation.labels import label_issues, write_label_fixes
from pets_core.evaluation.measures import bootstrap_share, measure_classes, species_counts, top_k
from pets_core.evaluation.predictions import (
    MAPS,
    VALID_PREDICTIONS,
    Predictions,
    read_info,
    read_predictions,
)
from pets_core.evaluation.report import ReportContext, SpeciesCounts, render_report
from pets_core.records import (
    Calibration,
    Champion,
    ClassMeasures,
    Comparison,
    ConfusedPair,
    EvalReport,
    LabelIssue,
    PredictResult,
    TrainResult,
)
from pets_core.registry import CANDIDATE, Candidate, relative

__all__ = ["given_predictions", "review"]

_MAX_LISTED_PAIRS = 50


@dataclass(frozen=True)
class _Findings:
    """What predictions come to.

    Attributes:
        predictions: Of the photos judged.
        validation: Of held-out ones.
        min_count: Pairs confused fewer times are left out.
    """

    predictions: Predictions
    validation: Predictions | None
    min_count: int

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """What was taken for what, (C, C)."""
        predictions = self.predictions
        num_classes = len(predictions.names)
        return confusion_counts(predictions.targets, predictions.predicted, num_classes)

    @cached_property
    def pairs(self) -> list[ConfusedPair]:
        """Most frequent first."""
        return most_confused(self.counts, self.predictions.names, self.min_count)

    @cached_property
    def classes(self) -> list[ClassMeasures]:
        """In index order."""
        return measure_classes(self.predictions)

    @cached_property
    def calibration(self) -> tuple[Calibration, Reliability]:
        """How far probabilities can be believed."""
        return calibrate(self.predictions, self.validation)

    @cached_property
    def issues(self) -> list[LabelIssue]:
        """Labels of held-out photos that are probably wrong."""
        return label_issues(self.validation) if self.validation else []


def review(
    config: PipelineConfig,
    run_url: str,
    predicted: PredictResult,
    *,
    champion: Champion | None = None,
    training: TrainResult | None = None,
) -> EvalReport:
    """Judge predictions and store everything under `<run>/evaluation`, what says so last.

    Args:
        config: Settings.
        run_url: Folder of the run.
        predicted: The files of predictions.
        champion: The model to compare with, if there is one.
        training: How the model was trained, where that is known.

    Raises:
        PetsError: The predictions are damaged, or no probabilities.
    """
    started = time.monotonic()
    predictions = read_predictions(predicted.predictions_url)
    findings = _Findings(
        predictions, _validation(predicted, predictions), config.evaluate.most_confused_min_count
    )
    error_rate = bootstrap_share(int(predictions.wrong.sum()), len(predictions))
    comparison = _comparison(predictions, predicted, champion)
    report = EvalReport(
        model_url=predicted.model_url,
        split=predictions.info.split,
        num_rows=len(predictions),
        error_rate=error_rate,
        top_k=top_k(predictions),
        loss=float(predictions.losses.mean(dtype=np.float64)),
        calibration=findings.calibration[0],
        most_confused=tuple(findings.pairs[:_MAX_LISTED_PAIRS]),
        num_label_issues=len(findings.issues) if findings.validation else None,
        comparison=comparison if isinstance(comparison, Comparison) else None,
        verdict=judge(config.gate, error_rate.value, comparison),
        predictions_url=predicted.predictions_url,
        url=storage.join(run_url, "evaluation"),
        photos_per_second=predicted.photos_per_second,
        seconds=0.0,
    )
    gallery = collect(
        predictions, findings.validation, findings.pairs, findings.issues, predicted.maps_url
    )
    _write_tables(report, findings, gallery)
    _write_pages(config, run_url, report, findings, gallery, training)
    report = report.model_copy(update={"seconds": time.monotonic() - started})
    storage.write_bytes(report.file("report.json"), report.model_dump_json(indent=2).encode())
    _write_candidate(config, run_url, report, predictions)
    return report


def given_predictions(url: str) -> PredictResult:
    """The predictions in a file, with what an evaluation left beside it.

    Raises:
        PetsError: There is no such file, or it holds no predictions.
    """
    url = storage.absolute(url)
    info = read_info(url)
    folder = url.rpartition("/")[0]
    beside = {
        name: storage.join(folder, file)
        for name, file in (("valid_url", VALID_PREDICTIONS), ("maps_url", MAPS))
        if storage.exists(storage.join(folder, file))
    }
    if info.split == "valid":
        beside["valid_url"] = url
    return PredictResult(
        model_url=info.model_url,
        predictions_url=url,
        photos_per_second=info.photos_per_second,
        **beside,
    )


def _validation(predicted: PredictResult, predictions: Predictions) -> Predictions | None:
    if predicted.valid_url is None:
        return None
    if predicted.valid_url == predicted.predictions_url:
        return predictions
    return read_predictions(predicted.valid_url)


def _comparison(
    predictions: Predictions, predicted: PredictResult, champion: Champion | None
) -> Comparison | str | None:
    """The comparison with the champion, or why there is none."""
    if champion is None:
        return None
    url = champion.predictions_url or predicted.champion_url
    if url is None:
        return (
            f"the champion {champion.model_url} cannot be compared: it knows other classes, or "
            "its files are gone. Look at the report, then `pets models promote`"
        )
    try:
        return compare(predictions, read_predictions(url))
    except PetsError as error:
        return f"the champion cannot be compared: {error}. Look at the report, then " + (
            "`pets models promote`"
        )


def _write_tables(report: EvalReport, findings: _Findings, gallery: Gallery) -> None:
    names, counts = findings.predictions.names, findings.counts
    rows, columns = np.nonzero(counts)
    support = np.maximum(counts.sum(1), 1)
    confusion = pa.table(
        {
            "actual": [names[i] for i in rows.tolist()],
            "predicted": [names[i] for i in columns.tolist()],
            "count": counts[rows, columns],
            "share": counts[rows, columns] / support[rows],
        }
    )
    pairs = [pair.model_dump() for pair in findings.pairs]
    tables = {
        "confusion": confusion,
        "most_confused": pa.Table.from_pylist(pairs, confusion.schema),
        "classes": pa.Table.from_pylist([row.model_dump() for row in findings.classes]),
    }
    for name, table in tables.items():
        write_table(report.file(f"{name}.parquet"), table)
        storage.write_bytes(report.file(f"{name}.csv"), _csv(table))
    write_gallery(report.file("gallery.parquet"), gallery)
    if findings.validation:
        write_label_fixes(report.file("label_fixes.csv"), findings.issues)


def _csv(table: pa.Table) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(table.column_names)
    writer.writerows(zip(*(column.to_pylist() for column in table.columns), strict=True))
    return text.getvalue().encode()


def _write_pages(
    config: PipelineConfig,
    run_url: str,
    report: EvalReport,
    findings: _Findings,
    gallery: Gallery,
    training: TrainResult | None,
) -> None:
    info, (_, bins) = findings.predictions.info, findings.calibration
    order = cluster_order(findings.counts)
    confusion = plots.confusion_matrix(
        findings.counts[np.ix_(order, order)], [findings.predictions.names[i] for i in order]
    )
    reliability = plots.reliability_diagram(bins.counts, bins.confidence, bins.accuracy)
    storage.write_bytes(report.file("confusion.png"), confusion)
    storage.write_bytes(report.file("reliability.png"), reliability)
    species, counts = species_counts(findings.counts, [c.species for c in info.classes])
    page = render_report(
        ReportContext(
            run_id=run_url.rstrip("/").rsplit("/", 1)[-1],
            info=info,
            report=report,
            classes=findings.classes,
            species=SpeciesCounts(names=species, counts=counts.tolist())
            if len(species) > 1
            else None,
            gallery=gallery,
            issues=findings.issues,
            confusion_png=confusion,
            reliability_png=reliability,
            training=training,
            training_png=_picture_of(run_url, "training.png"),
            lr_png=_picture_of(run_url, "lr_find/curve.png"),
            generated_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            settings_yaml=yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False),
        )
    )
    storage.write_bytes(report.file("report.html"), page.encode())
    card = model_card(info, report, findings.classes, training).encode()
    storage.write_bytes(report.file("model_card.md"), card)
    if report.model_url.startswith(run_url):
        storage.write_bytes(storage.join(report.model_url, "README.md"), card)


def _picture_of(run_url: str, name: str) -> bytes | None:
    url = storage.join(run_url, name)
    return storage.read_bytes(url) if storage.exists(url) else None


def _write_candidate(
    config: PipelineConfig, run_url: str, report: EvalReport, predictions: Predictions
) -> None:
    """Say that the run's model may be promoted."""
    info = predictions.info
    candidate = Candidate(
        run_id=run_url.rstrip("/").rsplit("/", 1)[-1],
        model_url=relative(config.store, report.model_url),
        predictions_url=relative(config.store, report.predictions_url),
        dataset_name=info.dataset_name,
        dataset_fingerprint=info.dataset_fingerprint,
        split=info.split,
        tta_views=info.tta_views,
        backbone=info.backbone,
        error_rate=report.error_rate.value,
        num_rows=report.num_rows,
        evaluated_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    storage.write_bytes(report.file(CANDIDATE), candidate.model_dump_json(indent=2).encode())
