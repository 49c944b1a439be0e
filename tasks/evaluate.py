"""Evaluation tasks: load the champion, evaluate predictions, promote the model."""

from __future__ import annotations

from prefect import State, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.states import Failed

from pets_core.config.pipeline import PipelineConfig
from pets_core.evaluation.predictions import read_info
from pets_core.ratings.config import RatingsConfig
from pets_core.ratings.records import RatingsRun
from pets_core.records.dataset import Run
from pets_core.records.evaluation import Champion, EvalReport, Verdict
from pets_core.records.inference import PredictResult
from pets_core.records.training import TrainResult
from pets_core.registry.aliases import (
    AliasConflict,
    EvaluationKey,
    GatedConfig,
    find_champion,
    promote_run,
)
from pets_core.runtime.mlflow_mirror import check_mlflow
from pets_core.targets.evaluate import evaluate, find_prediction_files
from tasks.events import emit_move, emit_rejection
from tasks.execution.retries import SHORT_TASK

__all__ = [
    "evaluate_model",
    "final_state",
    "load_champion",
    "promote_model",
    "use_predictions",
]


@task(name="predictions", cache_policy=NO_CACHE)
def use_predictions(config: PipelineConfig, predictions_url: str) -> PredictResult:
    """Check the settings, and load the result of an earlier prediction."""
    check_mlflow(config.registry.mlflow_uri, config.gate.alias)
    return find_prediction_files(predictions_url)


@task(name="champion", **SHORT_TASK)
def load_champion(
    config: PipelineConfig | RatingsConfig, subject: Run | RatingsRun | PredictResult
) -> Champion | None:
    """Return the champion to compare with, or log that there is none and return None.

    Args:
        config: Settings.
        subject: Run whose model will be evaluated, or given predictions.
    """
    key = _evaluation_key(config, subject)
    champion = find_champion(config, key)
    if champion is None:
        get_run_logger().info(
            "%s of %s points at no model yet", config.gate.alias, key.dataset_name
        )
    return champion


def _evaluation_key(
    config: PipelineConfig | RatingsConfig, subject: Run | RatingsRun | PredictResult
) -> EvaluationKey:
    if isinstance(subject, PredictResult):
        return EvaluationKey.of(read_info(subject.predictions_url))
    if isinstance(subject, RatingsRun):
        ratings = subject.manifest
        return EvaluationKey(ratings.name, ratings.fingerprint, ratings.held_out, tta_views=0)
    assert isinstance(config, PipelineConfig)
    return EvaluationKey.by(config, subject.manifest)


@task(name="evaluate", **SHORT_TASK)
def evaluate_model(
    config: PipelineConfig | RatingsConfig,
    run_url: str,
    predicted: PredictResult,
    champion: Champion | None = None,
    training: TrainResult | None = None,
) -> EvalReport:
    """Evaluate the predictions, compare them with the champion's, and store the results."""
    if isinstance(config, RatingsConfig):
        from pets_core.ratings.evaluate import evaluate_ratings

        return evaluate_ratings(config, run_url, predicted, champion=champion, training=training)
    return evaluate(config, run_url, predicted, champion=champion, training=training)


def promote_model(config: GatedConfig, report: EvalReport) -> EvalReport:
    """Promote a model that passed the gate, if `gate.promote` is set. Call it in a flow.

    Emits the event pets.model.promoted or pets.model.rejected.

    Returns:
        The report; its verdict is negative if the alias moved during the evaluation.
    """
    if not config.gate.promote:
        return report
    if report.verdict.passed:
        report = point_alias(config, report)
    if not report.verdict.passed:
        emit_rejection(config, report)
    return report


@task(name="promote", **SHORT_TASK)
def point_alias(config: GatedConfig, report: EvalReport) -> EvalReport:
    """Point the alias at the evaluated model."""
    try:
        version = promote_run(config.store, config.gate.alias, report)
    except AliasConflict as error:
        return report.model_copy(update={"verdict": Verdict(passed=False, reasons=(str(error),))})
    get_run_logger().info(
        "%s of %s points at %s", config.gate.alias, version.model.dataset_name, report.model_url
    )
    emit_move(config.store, config.gate.alias, version)
    return report


def final_state(config: GatedConfig, report: EvalReport) -> EvalReport | State[EvalReport]:
    """Return the report, or a state Rejected if promotion is on and the gate did not pass."""
    if not config.gate.promote or report.verdict.passed:
        return report
    reasons = "; ".join(report.verdict.reasons)
    return Failed(name="Rejected", message=f"not promoted: {reasons}", data=report)
