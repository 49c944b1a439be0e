"""Evaluation of a stored model alone."""

# No postponed annotations: a worker loads this file apart and could not resolve them.
from prefect import flow

from pets_core.config import PipelineConfig
from pets_core.records import EvalReport
from tasks.artifacts import publish_evaluation
from tasks.ingest import ingest_dataset
from tasks.stages import check_run, evaluate_model, new_run

__all__ = ["evaluate_flow"]


@flow(name="pets-evaluate")
def evaluate_flow(
    model_url: str,
    config: PipelineConfig = PipelineConfig(),  # noqa: B008 - frozen
) -> EvalReport:
    """Judge the model in a folder, path or URL, on the source's photos."""
    check_run(config, model_url)
    manifest = ingest_dataset(config)
    run = new_run(config, manifest)
    report = evaluate_model(config, run, model_url)
    publish_evaluation(report)
    return report
