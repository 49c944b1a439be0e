"""Embeddings of a data set's photos."""

# No postponed annotations: a worker loads this file apart and could not resolve them.
from prefect import flow

from pets_core.config.pipeline import PipelineConfig
from pets_core.records.inference import NearDuplicates
from tasks.embed import begin_embedding, compare_photos, embed_photos, publish_near_duplicates
from tasks.stages import check_run

__all__ = ["embed_flow"]


@flow(name="pets-embed")
def embed_flow(
    model_url: str,
    config: PipelineConfig = PipelineConfig(),  # noqa: B008 - frozen
    dataset: str | None = None,
) -> NearDuplicates:
    """Have the model in a folder, path or URL, make an embedding of each photo of a data set.

    That is the source's, or where `dataset` is given, the stored one of that name, or the version
    whose fingerprint begins so. Photos that are nearly another one are found on the way.
    """
    check_run(config, model_url)
    run = begin_embedding(config, dataset)
    embedded = embed_photos(config, run, model_url)
    found = compare_photos(config, run, embedded)
    publish_near_duplicates(run.manifest, found)
    return found
