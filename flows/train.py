"""Training of a model, without evaluation."""

# No postponed annotations: workers load this file by path and could not resolve them.
from prefect import flow

from pets_core.config.pipeline import PipelineConfig
from pets_core.records.training import TrainResult
from tasks.artifacts.training import publish_training
from tasks.execution.naming import flow_run_name
from tasks.stages import check_run, choose_recipe, find_lr, start_or_resume_run, train_model

__all__ = ["train_flow"]


@flow(name="pets-train", flow_run_name=flow_run_name)
def train_flow(
    config: PipelineConfig = PipelineConfig(),  # noqa: B008 - frozen
    resume: str | None = None,
) -> TrainResult:
    """Train a model with `train.base_lr`, or the LR finder's suggestion if it is not set.

    The data set is ingested if necessary.

    Args:
        config: Settings (docs/settings.md).
        resume: Folder of an interrupted run to resume.
    """
    check_run(config)
    run = start_or_resume_run(config, resume)
    config = choose_recipe(config, run)
    base_lr = None
    if config.train.num_epochs:
        base_lr = config.train.base_lr or find_lr(config, run).chosen
    result = train_model(config, run, base_lr, is_evaluated=False)
    publish_training(result, config.train)
    return result
