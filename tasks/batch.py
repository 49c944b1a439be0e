"""Batch prediction tasks: plan parts, predict them in mapped tasks, commit, publish."""

from __future__ import annotations

import time

from prefect import get_run_logger, task, unmapped
from prefect.cache_policies import NO_CACHE

from pets_core import storage
from pets_core.config.pipeline import PipelineConfig
from pets_core.errors import PetsError
from pets_core.inference.batch import commit_batch, missing_parts, plan_batch
from pets_core.records.inference import BatchPlan, BatchSummary, PartsResult
from pets_core.runtime.request import WorkRequest
from pets_core.storage.markdown import escape_markdown
from tasks.artifacts.publisher import Publisher, table
from tasks.execution.delegate import map_in_threads
from tasks.execution.retries import should_retry
from tasks.stages import RESUMABLE_TASK, current_run_folder, run_or_delegate

__all__ = ["plan_photos", "predict_all", "publish_batch"]

_MAX_LABELS = 100


@task(name="plan photos", cache_policy=NO_CACHE, retries=2, retry_condition_fn=should_retry)
def plan_photos(config: PipelineConfig, model_url: str, output_url: str | None) -> BatchPlan:
    """List the photos and split them into parts; the default output is in the run folder."""
    if config.batch.num_tasks > 1 and config.launch.deployment is None:
        raise PetsError(
            f"batch.num_tasks = {config.batch.num_tasks}: several tasks need several machines. "
            "Set launch.deployment, or set batch.num_tasks to 1"
        )
    folder = output_url or storage.join(current_run_folder(config), "batch")
    plan = plan_batch(config, model_url, folder)
    get_run_logger().info(
        "Predicting %d photos in %d part%s to %s",
        plan.num_photos,
        plan.num_parts,
        "" if plan.num_parts == 1 else "s",
        plan.url,
    )
    return plan


@task(name="predict parts", **RESUMABLE_TASK)
def predict_parts(config: PipelineConfig, plan: BatchPlan, parts: tuple[int, int]) -> PartsResult:
    """Predict a range of parts in worker ranks, without those already written."""
    request = WorkRequest(
        stage="predict-parts",
        config=config,
        run_url=current_run_folder(config),
        batch=plan,
        parts=parts,
    )
    return run_or_delegate(request, PartsResult)


@task(name="commit predictions", cache_policy=NO_CACHE, retries=2, retry_condition_fn=should_retry)
def commit_photos(plan: BatchPlan, num_predicted: int, seconds: float) -> BatchSummary:
    """Check that the output has every photo exactly once, and commit it."""
    return commit_batch(plan, num_predicted=num_predicted, seconds=seconds)


def predict_all(config: PipelineConfig, plan: BatchPlan) -> BatchSummary:
    """Predict all missing parts and commit the output. Call it in a flow."""
    started = time.monotonic()
    shares = _shares(plan, config.batch.num_tasks)
    if config.launch.deployment is None or len(shares) < 2:
        # A launcher ends with the thread that started it: use this thread.
        done = [predict_parts(config, plan, share) for share in shares]
    else:
        given = {"config": unmapped(config), "plan": unmapped(plan), "parts": shares}
        done = [state.result() for state in map_in_threads(predict_parts, given, len(shares))]
    num_photos = sum(result.num_photos for result in done)
    return commit_photos(plan, num_photos, time.monotonic() - started)


def _shares(plan: BatchPlan, num_tasks: int) -> list[tuple[int, int]]:
    """Return the ranges of parts, as (first, end), that have missing parts.

    The ranges depend on the plan only, so that a restarted run finds the flow runs that are still
    active on them.
    """
    size = -(-plan.num_parts // num_tasks)
    ranges = [(i, min(i + size, plan.num_parts)) for i in range(0, plan.num_parts, size)]
    missing = missing_parts(plan, range(plan.num_parts))
    return [(first, end) for first, end in ranges if any(first <= n < end for n in missing)]


@task(name="publish predictions", cache_policy=NO_CACHE)
def publish_batch(summary: BatchSummary) -> None:
    """Publish the artifacts `batch-summary` and `unreadable-photos`."""
    text = (
        f"# {summary.num_photos:,} photos\n\n"
        f"{summary.num_photos - summary.num_unreadable:,} predicted, {summary.num_unreadable:,} "
        f"unreadable; {summary.photos_per_second:,.0f} photos/s\n\n"
        f"{summary.num_skipped:,} other files are listed in `{summary.url}/skipped.parquet`\n\n"
        + (table(["predicted", "photos"], rows) if (rows := _counts(summary)) else "")
        + f"\n\nPredictions: `{summary.url}/predictions`. Model: `{summary.model_url}`\n"
    )
    unreadable = [{"photo": photo, "error": error} for photo, error in summary.unreadable]
    with Publisher(summary.url) as publisher:
        publisher.markdown("batch-summary", text, "Batch prediction")
        publisher.table(
            "unreadable-photos", unreadable, f"{summary.num_unreadable} unreadable photos",
            f"{summary.url}/unreadable.parquet",
        )  # fmt: skip


def _counts(summary: BatchSummary) -> list[tuple[str, int]]:
    counts = list(summary.counts.items())[:_MAX_LABELS]
    return [(escape_markdown(name), count) for name, count in counts]
