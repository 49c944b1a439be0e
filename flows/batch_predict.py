"""Batch prediction of photos without labels."""

# No postponed annotations: workers load this file by path and could not resolve them.
from prefect import flow

from pets_core.config.pipeline import PipelineConfig
from pets_core.records.inference import BatchSummary
from tasks.batch import plan_photos, predict_all, publish_batch
from tasks.execution.naming import named_by_data_set
from tasks.stages import check_run

__all__ = ["batch_predict_flow"]


@flow(name="pets-batch-predict", flow_run_name=named_by_data_set("batch-predict"))
def batch_predict_flow(
    model_url: str,
    config: PipelineConfig = PipelineConfig(),  # noqa: B008 - frozen
    source_url: str | None = None,
    output_url: str | None = None,
) -> BatchSummary:
    """Run a stored model on all photos of a source and write the predictions to Parquet.

    Args:
        model_url: Model folder, path or URL.
        config: Settings (docs/settings.md).
        source_url: Photos to predict; overrides `source.url` of the settings.
        output_url: Output folder; resumes the run that wrote to it. Default: in the run's folder.
    """
    if source_url:
        source = config.source.model_copy(update={"url": source_url})
        config = config.model_copy(update={"source": source})
    check_run(config, model_url)
    plan = plan_photos(config, model_url, output_url)
    summary = predict_all(config, plan)
    publish_batch(summary)
    return summary
