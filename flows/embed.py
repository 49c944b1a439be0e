"""Embeddings and near-duplicates of a data set's photos."""

# No postponed annotations: workers load this file by path and could not resolve them.
from prefect import flow

from pets_core.config.pipeline import PipelineConfig
from pets_core.records.inference import NearDuplicates
from tasks.embed import (
    compare_photos,
    embed_photos,
    publish_near_duplicates,
    start_or_resume_embedding,
)
from tasks.execution.naming import named_by_data_set
from tasks.stages import check_run

__all__ = ["embed_flow"]


@flow(name="pets-embed", flow_run_name=named_by_data_set("embed"))
def embed_flow(
    model_url: str,
    config: PipelineConfig = PipelineConfig(),  # noqa: B008 - frozen
    dataset: str | None = None,
) -> NearDuplicates:
    """Compute embeddings of all photos of a data set and find near-duplicates.

    Args:
        model_url: Model folder, path or URL.
        config: Settings (docs/settings.md).
        dataset: Name of a stored data set or fingerprint prefix of a version. Default: the data set
            of the source.
    """
    check_run(config, model_url)
    run = start_or_resume_embedding(config, dataset)
    embedded = embed_photos(config, run, model_url)
    found = compare_photos(config, run, embedded)
    publish_near_duplicates(run.manifest, found)
    return found
