"""Learning-rate finder."""

# No postponed annotations: workers load this file by path and could not resolve them.
from prefect import flow

from pets_core.config.pipeline import PipelineConfig
from pets_core.records.training import LRSuggestion
from tasks.artifacts.training import publish_lr
from tasks.execution.naming import flow_run_name
from tasks.stages import check_run, choose_recipe, find_lr, start_or_resume_run

__all__ = ["lr_find_flow"]


@flow(name="pets-lr-find", flow_run_name=flow_run_name)
def lr_find_flow(config: PipelineConfig = PipelineConfig()) -> LRSuggestion:  # noqa: B008 - frozen
    """Suggest a learning rate for the source's photos."""
    check_run(config)
    run = start_or_resume_run(config)
    config = choose_recipe(config, run)
    suggestion = find_lr(config, run)
    publish_lr(suggestion)
    return suggestion
