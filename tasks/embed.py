"""Embedding tasks: embed the photos of a data set and find near-duplicates."""

from __future__ import annotations

from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from pets_core import storage
from pets_core.config.pipeline import PipelineConfig
from pets_core.data.dataset import read_table
from pets_core.data.versions import find_version
from pets_core.embeddings.near import find_near_duplicates
from pets_core.records.dataset import DatasetManifest, Run
from pets_core.records.inference import EmbedResult, NearDuplicates
from pets_core.runtime.request import WorkRequest
from tasks.artifacts.dataset import MAX_PAIRS, pair_table
from tasks.artifacts.publisher import Publisher, table
from tasks.execution.retries import should_retry
from tasks.stages import (
    RESUMABLE_TASK,
    create_run,
    find_earlier_run,
    run_or_delegate,
    start_or_resume_run,
)

__all__ = ["compare_photos", "embed_photos", "publish_near_duplicates", "start_or_resume_embedding"]


def start_or_resume_embedding(config: PipelineConfig, dataset: str | None) -> Run:
    """Start or resume a run. Call it in a flow.

    Args:
        config: Settings. Their source is ingested if `dataset` is None.
        dataset: Name of a stored data set, or the first digits of a version's fingerprint.
    """
    if dataset is None:
        return start_or_resume_run(config)
    return find_earlier_run(config) or create_run(config, stored_data_set(config, dataset))


@task(name="stored data set", cache_policy=NO_CACHE, retries=2, retry_condition_fn=should_retry)
def stored_data_set(config: PipelineConfig, dataset: str) -> DatasetManifest:
    """Return the manifest of a data-set version in the store."""
    return find_version(config.store, dataset)


@task(name="embed", **RESUMABLE_TASK)
def embed_photos(config: PipelineConfig, run: Run, model_url: str) -> EmbedResult:
    """Embed the photos with a stored model in worker ranks."""
    request = WorkRequest(
        stage="embed",
        config=config,
        run_url=run.url,
        manifest=run.manifest,
        model_url=storage.absolute(model_url),
    )
    result = run_or_delegate(request, EmbedResult)
    get_run_logger().info(
        "Computed %d embeddings at %.0f photos/s", result.num_photos, result.photos_per_second
    )
    return result


@task(name="compare", cache_policy=NO_CACHE, retries=2, retry_condition_fn=should_retry)
def compare_photos(config: PipelineConfig, run: Run, embedded: EmbedResult) -> NearDuplicates:
    """Find near-duplicate photos."""
    min_similarity = config.embed.min_similarity
    return find_near_duplicates(run.manifest, run.url, embedded.embeddings_url, min_similarity)


@task(name="publish near-duplicates", cache_policy=NO_CACHE)
def publish_near_duplicates(manifest: DatasetManifest, found: NearDuplicates) -> None:
    """Publish the artifact `near-duplicates`: counts by method, and the first pairs."""
    rows = read_table(found.url).slice(0, MAX_PAIRS).to_pylist()
    counts = table(
        ["found by", "photos"],
        [
            ["embedding and perceptual hash", found.num_both],
            ["embedding only", found.num_only_embedding],
            ["perceptual hash only", found.num_only_hash],
        ],
    )
    total = found.num_both + found.num_only_embedding
    text = (
        f"# {total:,} of {found.num_photos:,} photos are near-duplicates\n\n"
        f"Found by embeddings with a cosine similarity of at least {found.min_similarity:g} "
        f"(`embed.min_similarity`) and by the perceptual hash of the ingest.\n\n{counts}\n\n"
        f"**{found.num_leaking:,} leak into a later split; the hash missed "
        f"{found.num_leaking_only_embedding:,} of them.**\n\n"
        + (pair_table(manifest, rows, ["photo", "match", "cosine"], _format_match) if rows else "")
        + (f"\n\nShowing the first {len(rows)}.\n" if total > len(rows) else "\n")
        + f"\nAll pairs: `{found.url}`. Embeddings: `{found.embeddings_url}`\n"
    )
    with Publisher(found.url) as publisher:
        publisher.markdown("near-duplicates", text, "Near-duplicate photos")


def _format_match(row: dict[str, Any]) -> str:
    by_hash = "embedding and hash" if row["by_hash"] else "embedding only"
    labels = "" if row["target_text"] == row["match_target_text"] else ", different label"
    return f"{row['similarity']:.3f}, {by_hash}{labels}"
