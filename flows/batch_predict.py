"""Photos without labels, predicted."""

# No postponed annotations: a worker loads this file apart and could not resolve them.
from prefect import flow

from pets_core.config.pipeline import PipelineConfig
from pets_core.records.inference import BatchSummary
from tasks.batch import plan_photos, predict_all, publish_batch
from tasks.stages import check_run

__all__ = ["batch_predict_flow"]


@flow(name="pets-batch-predict")
def batch_predict_flow(
    model_url: str,
    config: PipelineConfig = PipelineConfig(),  # noqa: B008 - frozen
    source_url: str | None = None,
    output_url: str | None = None,
) -> BatchSummary:
    """Have the model in a folder, path or URL, say what is on each of the source's photos.

    `source_url`, where it is given, is in place of the settings'. `output_url` is the folder of the
    results, which may be one that an earlier run began to fill; by default it is in the run's own.
    """
    if source_url:
        source = config.source.model_copy(update={"url": source_url})
        config = config.model_copy(update={"source": source})
    check_run(config, model_url)
    plan = plan_photos(config, model_url, output_url)
    summary = predict_all(config, plan)
    publish_batch(summary)
    return summary
