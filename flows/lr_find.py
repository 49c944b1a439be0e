"""The learning-rate finder alone."""

# No postponed annotations: a worker loads this file apart and could not resolve them.
from prefect import flow

from pets_core.config import PipelineConfig
from pets_core.records import LRSuggestion
from tasks.artifacts import publish_lr
from tasks.ingest import ingest_dataset
from tasks.stages import check_run, find_lr, new_run

__all__ = ["lr_find_flow"]


@flow(name="pets-lr-find")
def lr_find_flow(config: PipelineConfig = PipelineConfig()) -> LRSuggestion:  # noqa: B008 - frozen
    """Suggest a learning rate for the source's photos."""
    check_run(config)
    manifest = ingest_dataset(config)
    run = new_run(config, manifest)
    suggestion = find_lr(config, run)
    publish_lr(suggestion)
    return suggestion
