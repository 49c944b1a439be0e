"""From predictions to a verdict, and to what the alias points at."""

from __future__ import annotations

from prefect import State, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.states import Failed

from pets_core.config.pipeline import PipelineConfig
from pets_core.evaluation.predictions import read_info
from pets_core.evaluation.review import given_predictions, review
from pets_core.numbers.records import NumbersReport
from pets_core.numbers.review import review_numbers
from pets_core.records.dataset import Run
from pets_core.records.evaluation import Champion, EvalReport, PredictResult, Verdict
from pets_core.records.training import TrainResult
from pets_core.registry import Judged, MovedError, find_champion, promote_run
from pets_core.tags.records import TagsReport
from pets_core.tags.review import review_tags
from tasks.execution.retries import SHORT_TASK

__all__ = [
    "Report",
    "champion_of",
    "conclude",
    "find_the_champion",
    "point_alias",
    "promote_model",
    "review_model",
    "use_predictions",
]

Report = EvalReport | TagsReport | NumbersReport
"""How a model did that tells classes, tags, or numbers."""


@task(name="champion", **SHORT_TASK)
def find_the_champion(config: PipelineConfig, run: Run) -> Champion | None:
    """Find the model that a new one is to be compared with; there is one where classes are told."""
    if run.manifest.targets != "class":
        return None
    return _champion(config, Judged.by(config, run.manifest))


@task(name="predictions", cache_policy=NO_CACHE)
def use_predictions(predictions_url: str) -> PredictResult:
    """Take predictions that were made before."""
    return given_predictions(predictions_url)


@task(name="champion", **SHORT_TASK)
def champion_of(config: PipelineConfig, predicted: PredictResult) -> Champion | None:
    """Find the model that one whose predictions are given is to be compared with, as above."""
    if predicted.targets != "class":
        return None
    return _champion(config, Judged.of(read_info(predicted.predictions_url)))


def _champion(config: PipelineConfig, judged: Judged) -> Champion | None:
    champion = find_champion(config, judged)
    if champion is None:
        get_run_logger().info(
            "%s of %s points at no model yet", config.gate.alias, judged.dataset_name
        )
    return champion


@task(name="review", **SHORT_TASK)
def review_model(
    config: PipelineConfig,
    run_url: str,
    predicted: PredictResult,
    champion: Champion | None = None,
    training: TrainResult | None = None,
) -> Report:
    """Judge the predictions, also beside the champion's, and store what people look at."""
    if predicted.targets == "tags":
        return review_tags(config, run_url, predicted)
    if predicted.targets != "class":
        return review_numbers(config, run_url, predicted)
    return review(config, run_url, predicted, champion=champion, training=training)


def promote_model(config: PipelineConfig, report: Report) -> Report:
    """Promote a model that passes the gate, where the gate is in force; to be called in a flow.

    Returns:
        The report, with another verdict where the alias was moved while the model was judged.
    """
    if not (isinstance(report, EvalReport) and config.gate.promote and report.verdict.passed):
        return report
    return point_alias(config, report)


@task(name="promote", **SHORT_TASK)
def point_alias(config: PipelineConfig, report: EvalReport) -> EvalReport:
    """Point the alias at the model."""
    try:
        move = promote_run(config.store, config.gate.alias, report)
    except MovedError as error:
        return report.model_copy(update={"verdict": Verdict(passed=False, reasons=(str(error),))})
    get_run_logger().info(
        "%s of %s points at %s", config.gate.alias, move.model.dataset_name, report.model_url
    )
    return report


def conclude(config: PipelineConfig, report: Report) -> Report | State[Report]:
    """What a flow is to return: a state Rejected where the gate is in force and bars the model."""
    if not (isinstance(report, EvalReport) and config.gate.promote) or report.verdict.passed:
        return report
    reasons = "; ".join(report.verdict.reasons)
    return Failed(name="Rejected", message=f"not promoted: {reasons}", data=report)
