"""Ingestion of photos into a Parquet data set."""

# No postponed annotations: workers load this file by path and could not resolve them.
from prefect import flow

from pets_core.config.pipeline import PipelineConfig
from pets_core.records.dataset import DatasetManifest
from tasks.artifacts.dataset import publish_dataset
from tasks.execution.naming import named_by_data_set
from tasks.ingest import ingest_dataset

__all__ = ["ingest_flow"]


@flow(name="pets-ingest", flow_run_name=named_by_data_set("ingest"))
def ingest_flow(config: PipelineConfig = PipelineConfig()) -> DatasetManifest:  # noqa: B008 - frozen
    """Ingest the photos of the source into the store, unless this version is stored already."""
    manifest = ingest_dataset(config)
    publish_dataset(manifest)
    return manifest
