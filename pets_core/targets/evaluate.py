"""Evaluation of any kind of target, from its predictions alone: no torch, no model."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pets_core import storage
from pets_core.config.pipeline import PipelineConfig
from pets_core.errors import PetsError, without_queries
from pets_core.evaluation.compare import ScoredSamples, compare
from pets_core.evaluation.gallery import write_gallery
from pets_core.evaluation.predictions import (
    CHAMPION_PREDICTIONS,
    MAPS,
    VALID_PREDICTIONS,
    Predictions,
    PredictionsInfo,
    read_info,
    read_predictions,
)
from pets_core.evaluation.report import ReportContext, model_card, render_report
from pets_core.evaluation.tables import write_frame
from pets_core.evaluation.train_overlap import trained_on
from pets_core.records.evaluation import (
    Champion,
    Comparison,
    EvalReport,
    PredictResult,
)
from pets_core.records.training import TrainResult
from pets_core.registry.aliases import CANDIDATE, Candidate, relative
from pets_core.registry.gate import check_gate, judge
from pets_core.storage.layout import SETTINGS
from pets_core.targets.base import Evaluation, Target
from pets_core.targets.registry import get_target

__all__ = ["check_gate_settings", "evaluate", "given_predictions"]

_BESIDE = {
    "valid_url": VALID_PREDICTIONS,
    "champion_url": CHAMPION_PREDICTIONS,
    "maps_url": MAPS,
}


def check_gate_settings(config: PipelineConfig, target: str | None = None) -> None:
    """Refuse gate settings that have no meaning for a kind of target.

    Args:
        config: Settings.
        target: Name of the kind; None: the one of the settings.

    Raises:
        PetsError: A setting has no meaning, or there is no such kind.
    """
    check_gate(config.gate, get_target(target or config.source.targets))


def evaluate(
    config: PipelineConfig,
    run_url: str,
    predicted: PredictResult,
    *,
    champion: Champion | None = None,
    training: TrainResult | None = None,
) -> EvalReport:
    """Evaluate predictions and store everything under `<run>/evaluation`, candidate.json last.

    Args:
        config: Settings.
        run_url: Folder of the run.
        predicted: The files of predictions.
        champion: The model to compare with, if there is one.
        training: How the model was trained, where that is known.

    Raises:
        PetsError: The predictions are damaged, or a setting has no meaning for their kind.
    """
    started = time.monotonic()
    target = get_target(predicted.targets)
    check_gate_settings(config, target.name)
    predictions = read_predictions(predicted.predictions_url, target)
    evaluator = target.evaluator(
        predictions,
        _validation(predicted, predictions, target),
        config.evaluate,
        is_own=_is_of_run(predicted.model_url, run_url),
        maps_url=predicted.maps_url,
    )
    scores, evaluation = evaluator.score(), evaluator.evaluate()
    unseen = scores.labels.unseen if scores.labels else ()
    seen = trained_on(config.store, predicted.model_url, predictions)
    num_trained_on = None if seen is None else int(seen.sum())
    is_champion = champion is not None and champion.model_url == predicted.model_url
    other = None if is_champion else champion
    comparison, not_compared = _compare(config, target, other, scores, predictions, predicted, seen)
    report = EvalReport(
        **_fields(evaluation),
        target=target.name,
        model_url=predicted.model_url,
        split=predictions.info.split,
        num_rows=len(predictions),
        primary=scores.metric,
        num_trained_on=num_trained_on,
        is_champion=is_champion,
        comparison=comparison,
        not_compared=not_compared,
        champion_version=champion.version if champion else None,
        unseen_labels=unseen,
        verdict=judge(config.gate, scores.metric, comparison, not_compared, num_trained_on, unseen),
        predictions_url=predicted.predictions_url,
        url=storage.join(run_url, "evaluation"),
        photos_per_second=predicted.photos_per_second,
        seconds=0.0,
    )
    _write(run_url, report, predictions.info, evaluation, training)
    report = report.model_copy(update={"seconds": time.monotonic() - started})
    storage.write_bytes(report.file("report.json"), report.model_dump_json(indent=2).encode())
    _write_candidate(config, run_url, report, predictions.info)
    return report


def _fields(evaluation: Evaluation) -> dict[str, Any]:
    """Return the fields of the report that the kind of target gives."""
    names = ("metrics", "details", "notes", "highlights", "sections", "num_label_issues")
    return {name: getattr(evaluation, name) for name in names}


def given_predictions(url: str) -> PredictResult:
    """Return the predictions in a file, with the files that an evaluation left in its folder.

    Raises:
        PetsError: There is no such file, or it holds no predictions, or of an unknown kind.
    """
    url = storage.absolute(url)
    info = read_info(url)
    try:
        get_target(info.targets)
    except PetsError as error:
        raise PetsError(f"{url}: {error}") from error
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


def _is_of_run(model_url: str, run_url: str) -> bool:
    return model_url.startswith(f"{run_url.rstrip('/')}/")


def _validation(
    predicted: PredictResult, predictions: Predictions, target: Target
) -> Predictions | None:
    if predicted.valid_url is None:
        return None
    if predicted.valid_url == predicted.predictions_url:
        return predictions
    validation = read_predictions(predicted.valid_url, target)
    if validation.info.model_url != predictions.info.model_url or _differs(
        target, predictions.info, validation.info
    ):
        raise PetsError(
            f"{predicted.valid_url}: predictions of {validation.info.model_url}, not of "
            f"{predictions.info.model_url} as those evaluated: remove it, or predict again"
        )
    return validation


def _differs(target: Target, one: PredictionsInfo, other: PredictionsInfo) -> bool:
    try:
        target.check_comparable(one, other)
    except PetsError:
        return True
    return False


def _compare(
    config: PipelineConfig,
    target: Target,
    champion: Champion | None,
    scores: ScoredSamples,
    predictions: Predictions,
    predicted: PredictResult,
    seen: NDArray[np.bool_] | None,
) -> tuple[Comparison | None, str | None]:
    """Return the comparison with the champion, or why there is none; neither without a champion.

    Args:
        config: Settings.
        target: The kind.
        champion: The model to compare with.
        scores: Of the samples evaluated.
        predictions: Of the same.
        predicted: Their files, and the champion's.
        seen: Which of the samples the model was trained on; None: not known.
    """
    if champion is None:
        return None, None
    try:
        theirs = _champion_predictions(champion, predicted, target)
        target.check_comparable(predictions.info, theirs.info)
        seen_there = trained_on(config.store, champion.model_url, predictions)
        either = None if seen is None or seen_there is None else seen | seen_there
        # Errors in standard deviations: both models' in those of the same training photos.
        info = theirs.info.model_copy(update={"numbers": predictions.info.numbers})
        champion_scores = target.evaluator(
            replace(theirs, info=info), config=config.evaluate
        ).score()
        return compare(scores, champion_scores, either), None
    except PetsError as error:
        return None, (
            f"the champion {champion.model_url} cannot be compared: {error}. Look at the report, "
            "then `pets models promote`"
        )


def _champion_predictions(
    champion: Champion, predicted: PredictResult, target: Target
) -> Predictions:
    if predicted.champion_refused:
        raise PetsError(predicted.champion_refused)
    if champion.predictions_url:
        return read_predictions(champion.predictions_url, target)
    if predicted.champion_url:
        theirs = read_predictions(predicted.champion_url, target)
        if theirs.info.model_url == champion.model_url:
            return theirs
    raise PetsError("it has not predicted these samples; `pets evaluate MODEL` has it do so")


def _write(
    run_url: str,
    report: EvalReport,
    info: PredictionsInfo,
    evaluation: Evaluation,
    training: TrainResult | None,
) -> None:
    """Write tables, figures, photos, report and model card."""
    for name, frame in evaluation.tables.items():
        write_frame(report.file(name), frame)
    for name, png in evaluation.figures.items():
        storage.write_bytes(report.file(f"{name}.png"), png)
    for name, data in evaluation.files.items():
        storage.write_bytes(report.file(name), data)
    write_gallery(report.file("gallery.parquet"), evaluation.gallery)
    # Those of a review are not those that made the predictions.
    settings = _stored(run_url, SETTINGS)
    context = ReportContext(
        run_id=_run_id(run_url),
        info=info,
        report=report,
        tables=evaluation.tables,
        figures=evaluation.figures,
        gallery=evaluation.gallery,
        training=training,
        training_png=_stored(run_url, "training.png"),
        lr_png=_stored(run_url, "lr_find/curve.png"),
        generated_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        settings_yaml=without_queries(settings.decode()) if settings else None,
    )
    storage.write_bytes(report.file("report.html"), render_report(context).encode())
    card = model_card(context, evaluation.task, evaluation.pipeline_tag).encode()
    storage.write_bytes(report.file("model_card.md"), card)
    if _is_of_run(report.model_url, run_url):
        storage.write_bytes(storage.join(report.model_url, "README.md"), card)
        for name, data in evaluation.model_files.items():
            storage.write_bytes(storage.join(report.model_url, name), data)


def _run_id(run_url: str) -> str:
    return run_url.rstrip("/").rsplit("/", 1)[-1]


def _stored(run_url: str, name: str) -> bytes | None:
    url = storage.join(run_url, name)
    return storage.read_bytes(url) if storage.exists(url) else None


def _write_candidate(
    config: PipelineConfig, run_url: str, report: EvalReport, info: PredictionsInfo
) -> None:
    """Commit the evaluation: from now on the run's model can be promoted."""
    candidate = Candidate(
        run_id=_run_id(run_url),
        target=report.target,
        model_url=relative(config.store, report.model_url),
        predictions_url=relative(config.store, report.predictions_url),
        dataset_name=info.dataset_name,
        dataset_fingerprint=info.dataset_fingerprint,
        split=info.split,
        tta_views=info.tta_views,
        backbone=info.backbone,
        metric=report.primary,
        num_rows=report.num_rows,
        evaluated_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    storage.write_bytes(report.file(CANDIDATE), candidate.model_dump_json(indent=2).encode())
