"""All that people look at of an evaluation, made of its predictions without model or torch."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pets_core import plots, storage
from pets_core.config.pipeline import PipelineConfig
from pets_core.data.dataset import write_table
from pets_core.errors import PetsError, without_queries
from pets_core.evaluation.calibration import Reliability, calibrate
from pets_core.evaluation.card import model_card
from pets_core.evaluation.compare import compare, judge
from pets_core.evaluation.confusion import cluster_order, confusion_counts, most_confused
from pets_core.evaluation.contamination import trained_on
from pets_core.evaluation.gallery import Gallery, collect, write_gallery
from pets_core.evaluation.labels import label_issues, write_label_fixes
from pets_core.evaluation.measures import bootstrap_share, measure_classes, species_counts, top_k
from pets_core.evaluation.predictions import (
    CHAMPION_PREDICTIONS,
    MAPS,
    VALID_PREDICTIONS,
    Predictions,
    read_any_info,
    read_predictions,
)
from pets_core.evaluation.report import ReportContext, SpeciesCounts, render_report
from pets_core.records.evaluation import (
    Calibration,
    Champion,
    ClassMeasures,
    Comparison,
    ConfusedPair,
    EvalReport,
    LabelIssue,
    PredictResult,
)
from pets_core.records.training import TrainResult
from pets_core.registry import CANDIDATE, Candidate, relative
from pets_core.storage.csv import table_csv
from pets_core.storage.layout import SETTINGS

__all__ = ["given_predictions", "review"]

_MAX_LISTED_PAIRS = 50
_CLASSES_SCHEMA = pa.schema(
    [("name", pa.string()), ("species", pa.string()), ("support", pa.int64()),
     ("correct", pa.int64()), ("precision", pa.float64()), ("recall", pa.float64()),
     ("f1", pa.float64()), ("taken_for", pa.string())]
)  # fmt: skip
_BESIDE = {
    "valid_url": VALID_PREDICTIONS,
    "champion_url": CHAMPION_PREDICTIONS,
    "maps_url": MAPS,
}


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

    @property
    def unseen_classes(self) -> tuple[str, ...]:
        """Classes without an evaluated photo, in index order."""
        return tuple(row.name for row in self.classes if not row.support)

    @cached_property
    def calibration(self) -> tuple[Calibration, Reliability]:
        """How far probabilities can be believed."""
        return calibrate(self.predictions, self.validation)

    @cached_property
    def issues(self) -> list[LabelIssue]:
        """Labels of held-out photos that are probably wrong."""
        return label_issues(self.validation) if self.validation else []

    def gallery(self, maps_url: str | None) -> Gallery:
        """Photos to look at, with the activation maps in a file where there is one."""
        return collect(self.predictions, self.validation, self.pairs, self.issues, maps_url)


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
    seen = trained_on(config.store, predicted.model_url, predictions)
    num_trained_on = None if seen is None else int(seen.sum())
    other = champion if champion and champion.model_url != predicted.model_url else None
    comparison, not_compared = _beside(config.store, other, predictions, predicted, seen)
    unseen = findings.unseen_classes
    verdict = judge(config.gate, error_rate.value, comparison, not_compared, num_trained_on, unseen)
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
        num_trained_on=num_trained_on,
        is_champion=champion is not None and other is None,
        comparison=comparison,
        not_compared=not_compared,
        champion_move=champion.move if champion else None,
        unseen_classes=unseen,
        verdict=verdict,
        predictions_url=predicted.predictions_url,
        url=storage.join(run_url, "evaluation"),
        photos_per_second=predicted.photos_per_second,
        seconds=0.0,
    )
    gallery = findings.gallery(predicted.maps_url)
    _write_tables(report, findings, gallery)
    _write_pages(run_url, report, findings, gallery, training)
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
    info = read_any_info(url)
    folder = url.rpartition("/")[0]
    beside = {
        name: storage.join(folder, file)
        for name, file in _BESIDE.items()
        if storage.exists(storage.join(folder, file))
    }
    if info.split == "valid":
        beside["valid_url"] = url
    return PredictResult(
        targets=info.targets,
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
    validation = read_predictions(predicted.valid_url)
    if (validation.names, validation.info.model_url) != (
        predictions.names,
        predictions.info.model_url,
    ):
        raise PetsError(
            f"{predicted.valid_url}: predictions of {validation.info.model_url}, not of "
            f"{predictions.info.model_url} as those judged: remove it, or predict anew"
        )
    return validation


def _beside(
    store: str,
    champion: Champion | None,
    predictions: Predictions,
    predicted: PredictResult,
    seen: NDArray[np.bool_] | None,
) -> tuple[Comparison | None, str | None]:
    """The comparison with the champion, or why it cannot be compared; neither where none is.

    Args:
        store: Root of data sets and runs.
        champion: The model to compare with.
        predictions: Of the photos judged.
        predicted: Their files, and the champion's.
        seen: Which of the photos the model was trained on; None: not known.
    """
    if champion is None:
        return None, None
    try:
        said = _said_by_champion(champion, predicted)
        seen_there = trained_on(store, champion.model_url, predictions)
        either = None if seen is None or seen_there is None else seen | seen_there
        return compare(predictions, said, either), None
    except PetsError as error:
        return None, (
            f"the champion {champion.model_url} cannot be compared: {error}. Look at the report, "
            "then `pets models promote`"
        )


def _said_by_champion(champion: Champion, predicted: PredictResult) -> Predictions:
    if predicted.champion_refused:
        raise PetsError(predicted.champion_refused)
    if champion.predictions_url:
        return read_predictions(champion.predictions_url)
    if predicted.champion_url:
        said = read_predictions(predicted.champion_url)
        if said.info.model_url == champion.model_url:
            return said
    raise PetsError("it has not judged these photos; `pets evaluate MODEL` has it do so")


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
    classes = [row.model_dump() for row in findings.classes]
    tables = {
        "confusion": confusion,
        "most_confused": pa.Table.from_pylist(pairs, confusion.schema),
        "classes": pa.Table.from_pylist(classes, _CLASSES_SCHEMA),
    }
    for name, table in tables.items():
        write_table(report.file(f"{name}.parquet"), table)
        storage.write_bytes(report.file(f"{name}.csv"), table_csv(table))
    write_gallery(report.file("gallery.parquet"), gallery)
    if findings.validation:
        write_label_fixes(report.file("label_fixes.csv"), findings.issues)


def _write_pages(
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
    # Those of a review are not those that made the predictions.
    settings = _stored(run_url, SETTINGS)
    species, counts = species_counts(findings.counts, [c.species for c in info.classes])
    page = render_report(
        ReportContext(
            run_id=_run_id(run_url),
            info=info,
            report=report,
            classes=findings.classes,
            species=SpeciesCounts(names=species, counts=counts.tolist())
            if len(species) > 1
            else None,
            gallery=gallery,
            confusion_png=confusion,
            reliability_png=reliability,
            training=training,
            training_png=_stored(run_url, "training.png"),
            lr_png=_stored(run_url, "lr_find/curve.png"),
            generated_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            settings_yaml=without_queries(settings.decode()) if settings else None,
        )
    )
    storage.write_bytes(report.file("report.html"), page.encode())
    card = model_card(info, report, findings.classes, training).encode()
    storage.write_bytes(report.file("model_card.md"), card)
    if report.model_url.startswith(f"{run_url.rstrip('/')}/"):
        storage.write_bytes(storage.join(report.model_url, "README.md"), card)


def _run_id(run_url: str) -> str:
    return run_url.rstrip("/").rsplit("/", 1)[-1]


def _stored(run_url: str, name: str) -> bytes | None:
    url = storage.join(run_url, name)
    return storage.read_bytes(url) if storage.exists(url) else None


def _write_candidate(
    config: PipelineConfig, run_url: str, report: EvalReport, predictions: Predictions
) -> None:
    """Say that the run's model may be promoted."""
    info = predictions.info
    candidate = Candidate(
        run_id=_run_id(run_url),
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
