"""Ingest alone: photos to a Parquet data set."""

# No postponed annotations: a worker loads this file apart and could not resolve them.
from prefect import flow

from pets_core.config.pipeline import PipelineConfig
from pets_core.records.dataset import DatasetManifest
from tasks.artifacts.dataset import publish_dataset
from tasks.ingest import ingest_dataset

__all__ = ["ingest_flow"]


@flow(name="pets-ingest")
def ingest_flow(config: PipelineConfig = PipelineConfig()) -> DatasetManifest:  # noqa: B008 - frozen
    """Bring the photos into the store, or find that they are there."""
    manifest = ingest_dataset(config)
    publish_dataset(manifest)
    return manifest
