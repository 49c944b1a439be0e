"""Embeddings of a data set's photos, and the near-duplicates found by them."""

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
from tasks.artifacts.dataset import MAX_PAIRS, pairs
from tasks.artifacts.publisher import Publisher, table
from tasks.execution.retries import may_pass
from tasks.stages import GOES_ON, begin_run, do_or_delegate, earlier_run, new_run

__all__ = ["begin_embedding", "compare_photos", "embed_photos", "publish_near_duplicates"]


def begin_embedding(config: PipelineConfig, dataset: str | None) -> Run:
    """Begin a run, or go on with it; to be called in a flow.

    Args:
        config: Settings; their source is brought into the store where no data set is named.
        dataset: Name of a stored data set, or the first digits of a version's fingerprint.
    """
    if dataset is None:
        return begin_run(config)
    return earlier_run(config) or new_run(config, stored_data_set(config, dataset))


@task(name="stored data set", cache_policy=NO_CACHE, retries=2, retry_condition_fn=may_pass)
def stored_data_set(config: PipelineConfig, dataset: str) -> DatasetManifest:
    """Find a version in the store."""
    return find_version(config.store, dataset)


@task(name="embed", **GOES_ON)
def embed_photos(config: PipelineConfig, run: Run, model_url: str) -> EmbedResult:
    """Have a stored model make embeddings in worker ranks."""
    request = WorkRequest(
        stage="embed",
        config=config,
        run_url=run.url,
        manifest=run.manifest,
        model_url=storage.absolute(model_url),
    )
    result = do_or_delegate(request, EmbedResult)
    get_run_logger().info(
        "%d embeddings at %.0f photos/s", result.num_photos, result.photos_per_second
    )
    return result


@task(name="compare", cache_policy=NO_CACHE, retries=2, retry_condition_fn=may_pass)
def compare_photos(config: PipelineConfig, run: Run, embedded: EmbedResult) -> NearDuplicates:
    """Find the photos that are nearly another one."""
    least = config.embed.min_similarity
    return find_near_duplicates(run.manifest, run.url, embedded.embeddings_url, least)


@task(name="publish near-duplicates", cache_policy=NO_CACHE)
def publish_near_duplicates(manifest: DatasetManifest, found: NearDuplicates) -> None:
    """Artifact `near-duplicates`: how many were found by what, and the first of them."""
    rows = read_table(found.url).slice(0, MAX_PAIRS).to_pylist()
    counts = table(
        ["found by", "photos"],
        [
            ["embedding and perceptual hash", found.num_both],
            ["embedding alone", found.num_only_embedding],
            ["perceptual hash alone", found.num_only_hash],
        ],
    )
    total = found.num_both + found.num_only_embedding
    text = (
        f"# {total:,} of {found.num_photos:,} photos are nearly another one\n\n"
        f"By embeddings whose cosine is at least {found.min_similarity:g} "
        f"(`embed.min_similarity`), beside the perceptual hash of the ingest.\n\n{counts}\n\n"
        f"**{found.num_leaking:,} are nearly a photo of a later split, of which the hash did not "
        f"find {found.num_leaking_only_embedding:,}.**\n\n"
        + (pairs(manifest, rows, ["photo", "like", "cosine"], _told) if rows else "")
        + (f"\n\nThe first {len(rows)} are shown.\n" if total > len(rows) else "\n")
        + f"\nAll: `{found.url}`, embeddings: `{found.embeddings_url}`\n"
    )
    with Publisher(found.url) as publisher:
        publisher.markdown("near-duplicates", text, "Photos that are nearly another one")


def _told(row: dict[str, Any]) -> str:
    by_hash = "the hash, too" if row["by_hash"] else "embedding alone"
    labels = "" if row["class_name"] == row["match_class_name"] else ", other label"
    return f"{row['similarity']:.3f}, {by_hash}{labels}"
