"""Training alone."""

# No postponed annotations: a worker loads this file apart and could not resolve them.
from prefect import flow

from pets_core.config.pipeline import PipelineConfig
from pets_core.records.training import TrainResult
from tasks.artifacts.training import publish_training
from tasks.stages import begin_run, check_run, find_lr, train_model

__all__ = ["train_flow"]


@flow(name="pets-train")
def train_flow(
    config: PipelineConfig = PipelineConfig(),  # noqa: B008 - frozen
    resume: str | None = None,
) -> TrainResult:
    """Train at train.base_lr, or at the finder's suggestion where that is empty.

    `resume` is the folder of a run that ended early, to go on with.
    """
    check_run(config)
    run = begin_run(config, resume)
    base_lr = config.train.base_lr or find_lr(config, run).chosen
    result = train_model(config, run, base_lr)
    publish_training(result)
    return result
