"""Comparison, verdict and files of an evaluation, for every kind of target."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pets_core import storage
from pets_core.errors import PetsError, without_queries
from pets_core.evaluation.compare import ScoredSamples, compare
from pets_core.evaluation.gallery import write_gallery
from pets_core.evaluation.predictions import Predictions, PredictionsInfo, read_predictions
from pets_core.evaluation.report import ReportContext, model_card, render_report
from pets_core.evaluation.tables import write_frame
from pets_core.records.base import Split
from pets_core.records.evaluation import Baseline, Champion, Comparison, EvalReport, Metric
from pets_core.records.inference import PredictResult
from pets_core.records.training import TrainResult
from pets_core.registry.aliases import (
    CANDIDATE,
    Candidate,
    EvaluationKey,
    GatedConfig,
    is_inside,
    relative,
)
from pets_core.storage.layout import (
    EVALUATION,
    GALLERY,
    REPORT,
    REPORT_RECORD,
    SETTINGS,
    TRAINING_PLOT,
)
from pets_core.targets.base import Evaluation, Evaluator, Target, baseline_warnings
from pets_core.targets.gate import evaluate_gate

__all__ = ["EvaluationInputs", "write_evaluation"]


@dataclass(frozen=True, kw_only=True)
class EvaluationInputs:
    """Inputs of an evaluation.

    Attributes:
        target: Kind of target.
        evaluator: Evaluator of the predictions.
        predicted: Files of predictions.
        trained_on: Function of a model folder and predictions that returns which samples the model
            was trained on, bool (N,), or None if unknown.
        samples: Plural noun for the samples.
        baselines: Functions that return the evaluators of baselines, by name.
    """

    target: Target
    evaluator: Evaluator
    predicted: PredictResult
    trained_on: Callable[[str, Predictions], NDArray[np.bool_] | None]
    samples: str = "photos"
    baselines: Mapping[str, Callable[[], Evaluator]] = field(default_factory=dict)


def write_evaluation(
    config: GatedConfig,
    run_url: str,
    subject: EvaluationInputs,
    *,
    champion: Champion | None = None,
    training: TrainResult | None = None,
) -> EvalReport:
    """Evaluate, compare, check the gate and store the results under `<run>/evaluation`.

    candidate.json is written last and commits the evaluation.

    Args:
        config: Store and gate.
        run_url: Folder of the run.
        subject: Inputs of the evaluation.
        champion: Model to compare with, if any.
        training: Training result of the model, if known.

    Raises:
        PetsError: The predictions cannot be evaluated.
    """
    started = time.monotonic()
    scores = subject.evaluator.score()
    _check_finite(scores)
    evaluation = subject.evaluator.evaluate()
    report = _report(config, run_url, subject, scores, evaluation, champion)
    _write(config.store, run_url, report, subject.evaluator, evaluation, training)
    report = report.model_copy(update={"seconds": time.monotonic() - started})
    storage.write_bytes(report.file(REPORT_RECORD), report.model_dump_json(indent=2).encode())
    _write_candidate(config.store, run_url, report, subject.evaluator.predictions.info)
    return report


def _report(
    config: GatedConfig,
    run_url: str,
    subject: EvaluationInputs,
    scores: ScoredSamples,
    evaluation: Evaluation,
    champion: Champion | None,
) -> EvalReport:
    """Compare with champion and baselines, and check the gate."""
    predictions, predicted = subject.evaluator.predictions, subject.predicted
    model_url, split = predicted.model_url, predictions.info.split
    unseen = scores.labels.unseen if scores.labels else ()
    in_training = subject.trained_on(model_url, predictions)
    num_trained_on = None if in_training is None else int(in_training.sum())
    is_champion = champion is not None and champion.model_url == model_url
    other = None if is_champion else champion
    comparison, comparison_error = _compare(subject, other, scores, in_training)
    baselines, problems = _compare_baselines(subject, scores)
    return EvalReport(
        **_fields(evaluation, scores.metric, problems + _validation_notes(split, subject.samples)),
        target=subject.target.name,
        samples=subject.samples,
        model_url=model_url,
        split=split,
        num_rows=len(predictions),
        primary=scores.metric,
        num_trained_on=num_trained_on,
        is_champion=is_champion,
        comparison=comparison,
        comparison_error=comparison_error,
        champion_version=champion.version if champion else None,
        baselines=tuple(baselines),
        unseen_labels=unseen,
        verdict=evaluate_gate(
            config.gate, scores.metric, comparison, comparison_error, num_trained_on, unseen
        ),
        predictions_url=predicted.predictions_url,
        url=storage.join(run_url, EVALUATION),
        photos_per_second=predicted.photos_per_second,
        seconds=0.0,
    )


def _fields(evaluation: Evaluation, primary: Metric, problems: list[str]) -> dict[str, Any]:
    """Return the report fields that are copied from the evaluation.

    Args:
        evaluation: The evaluation; its notes follow the warnings of baselines.
        primary: Primary metric.
        problems: Notes that follow those of the evaluation.
    """
    names = ("metrics", "details", "highlights", "sections", "num_label_issues")
    notes = [*baseline_warnings(primary, evaluation.baselines), *evaluation.notes, *problems]
    return {name: getattr(evaluation, name) for name in names} | {"notes": notes}


def _validation_notes(split: Split, samples: str) -> list[str]:
    """Return a note that validation metrics are optimistic; empty for other splits."""
    if split != "valid":
        return []
    return [
        f"Metrics of the validation {samples} are optimistic, because training choices are made on "
        "them. Evaluate on a test split (test_fraction)."
    ]


def _compare(
    subject: EvaluationInputs,
    champion: Champion | None,
    scores: ScoredSamples,
    in_training: NDArray[np.bool_] | None,
) -> tuple[Comparison | None, str | None]:
    """Return the comparison with the champion, or the reason why it failed.

    Both are None without a champion.

    Args:
        subject: Inputs of the evaluation.
        champion: Model to compare with.
        scores: Scores of the evaluated samples.
        in_training: Which of the samples the model was trained on, bool (N,); None if unknown.
    """
    if champion is None:
        return None, None
    target, predictions = subject.target, subject.evaluator.predictions
    try:
        theirs = _champion_predictions(champion, subject.predicted, target)
        _check_same_samples(theirs.info, predictions.info)
        target.check_comparable(predictions.info, theirs.info)
        other = subject.trained_on(champion.model_url, predictions)
        either = None if in_training is None or other is None else in_training | other
        # Standardise both models' errors by the same training photos. Read files of the champion,
        # such as thresholds, from the folder that the alias names.
        info = theirs.info.model_copy(
            update={"numbers": predictions.info.numbers, "model_url": champion.model_url}
        )
        champion_scores = target.evaluator(
            replace(theirs, info=info),
            config=subject.evaluator.config,
            evaluation_url=champion.evaluation_url,
        ).score()
        return compare(scores, champion_scores, either), None
    except PetsError as error:
        return None, (
            f"the champion {champion.model_url} cannot be compared: {error}. Check the report, "
            "then promote with `pets models promote`"
        )


def _compare_baselines(
    subject: EvaluationInputs, scores: ScoredSamples
) -> tuple[list[Baseline], list[str]]:
    """Compare the model with its baselines on the same samples.

    Returns:
        The comparisons, and a note for each baseline that cannot be compared.
    """
    baselines, notes = [], []
    for name, load in subject.baselines.items():
        try:
            compared = compare(scores, load().score())
        except PetsError as error:
            notes.append(f"The model is not compared with the {name}: {error}")
            continue
        baselines.append(
            Baseline(
                name=name,
                metric=compared.champion_metric,
                improvement=compared.improvement,
                p_value=compared.p_value,
            )
        )
    return baselines, notes


def _check_finite(scores: ScoredSamples) -> None:
    bad = np.flatnonzero(~np.isfinite(scores.scores))
    if len(bad) or not np.isfinite(scores.metric.value):
        first = f" (first: {scores.ids[bad[0]]})" if len(bad) else ""
        raise PetsError(
            f"{scores.metric.name} is not finite for {len(bad)} of {len(scores)} samples{first}: "
            "correct Evaluator.score of this kind of target"
        )


def _check_same_samples(champion: PredictionsInfo, model: PredictionsInfo) -> None:
    """Check that the champion's predictions were not overwritten after its promotion."""
    theirs, own = EvaluationKey.of(champion), EvaluationKey.of(model)
    if theirs != own:
        raise PetsError(
            f"its predictions are of split {theirs.split} of {theirs.dataset_name} "
            f"{theirs.dataset_fingerprint} with {theirs.tta_views} TTA views, the model's of split "
            f"{own.split} of {own.dataset_name} {own.dataset_fingerprint} with {own.tta_views}"
        )


def _champion_predictions(
    champion: Champion, predicted: PredictResult, target: Target
) -> Predictions:
    if predicted.champion_error:
        raise PetsError(predicted.champion_error)
    if champion.predictions_url:
        return read_predictions(champion.predictions_url, target)
    if predicted.champion_url:
        theirs = read_predictions(predicted.champion_url, target)
        if theirs.info.model_url == champion.model_url:
            return theirs
    raise PetsError("it has no predictions of these samples; run `pets evaluate MODEL`")


def _write(
    store: str,
    run_url: str,
    report: EvalReport,
    evaluator: Evaluator,
    evaluation: Evaluation,
    training: TrainResult | None,
) -> None:
    """Write tables, figures, gallery, report and model card."""
    for name, frame in evaluation.tables.items():
        write_frame(report.file(name), frame)
    for name, png in evaluation.figures.items():
        storage.write_bytes(report.file(f"{name}.png"), png)
    for name, data in evaluation.files.items():
        storage.write_bytes(report.file(name), data)
    write_gallery(report.file(GALLERY), evaluation.gallery)
    # A later evaluation has no such file: its settings did not produce the predictions.
    settings = _read_if_exists(storage.join(run_url, SETTINGS))
    curves_url = training.plot_url if training else storage.join(run_url, TRAINING_PLOT)
    context = ReportContext(
        run_id=_run_id(run_url),
        info=evaluator.info,
        report=report,
        tables=evaluation.tables,
        figures=evaluation.figures,
        gallery=evaluation.gallery,
        training=training,
        training_png=_read_if_exists(curves_url),
        lr_png=_read_if_exists(storage.join(run_url, "lr_find/curve.png")),
        generated_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        settings_yaml=without_queries(settings.decode()) if settings else None,
    )
    storage.write_bytes(report.file(REPORT), render_report(context).encode())
    card = model_card(context, evaluation.task, evaluation.pipeline_tag).encode()
    storage.write_bytes(report.file("model_card.md"), card)
    if evaluator.is_run_model:
        storage.write_bytes(storage.join(report.model_url, "README.md"), card)
    for name, data in evaluation.model_files.items():
        url = storage.join(report.model_url, name)
        # Add missing files to a model of another run, so that it predicts as it was evaluated.
        if evaluator.is_run_model or (is_inside(store, url) and not storage.exists(url)):
            storage.write_bytes(url, data)


def _run_id(run_url: str) -> str:
    return run_url.rstrip("/").rsplit("/", 1)[-1]


def _read_if_exists(url: str) -> bytes | None:
    return storage.read_bytes(url) if storage.exists(url) else None


def _write_candidate(store: str, run_url: str, report: EvalReport, info: PredictionsInfo) -> None:
    """Write candidate.json, which commits the evaluation and allows promotion of the model."""
    candidate = Candidate(
        run_id=_run_id(run_url),
        target=report.target,
        model_url=relative(store, report.model_url),
        predictions_url=relative(store, report.predictions_url),
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
