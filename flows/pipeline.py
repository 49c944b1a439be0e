"""The whole pipeline: ingest, learning rate, train, evaluate."""

# No postponed annotations: a worker loads this file apart and could not resolve them.
from prefect import flow

from pets_core.config import PipelineConfig
from pets_core.records import EvalReport
from tasks.artifacts import (
    publish_dataset,
    publish_evaluation,
    publish_lr,
    publish_summary,
    publish_training,
)
from tasks.stages import begin_run, check_run, evaluate_model, find_lr, train_model

__all__ = ["pipeline"]


@flow(name="pets-pipeline")
def pipeline(
    config: PipelineConfig = PipelineConfig(),  # noqa: B008 - frozen
    resume: str | None = None,
) -> EvalReport:
    """Turn photos into a trained, evaluated model.

    `resume` is the folder of a run that ended early, to go on with.
    """
    check_run(config)
    run = begin_run(config, resume)
    publish_dataset(run.manifest)
    suggestion = find_lr(config, run)
    publish_lr(suggestion)
    base_lr = config.train.base_lr or suggestion.chosen
    result = train_model(config, run, base_lr)
    publish_training(result)
    report = evaluate_model(config, run, result.model_url, result)
    publish_evaluation(report)
    publish_summary(config, run.manifest, result, report)
    return report
