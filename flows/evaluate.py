"""Evaluation of a stored model alone."""

# No postponed annotations: a worker loads this file apart and could not resolve them.
from prefect import flow

from pets_core.config import PipelineConfig
from pets_core.records import EvalReport
from tasks.artifacts import publish_evaluation
from tasks.stages import begin_run, check_run, evaluate_model

__all__ = ["evaluate_flow"]


@flow(name="pets-evaluate")
def evaluate_flow(
    model_url: str,
    config: PipelineConfig = PipelineConfig(),  # noqa: B008 - frozen
) -> EvalReport:
    """Judge the model in a folder, path or URL, on the source's photos."""
    check_run(config, model_url)
    run = begin_run(config)
    report = evaluate_model(config, run, model_url)
    publish_evaluation(report)
    return report
