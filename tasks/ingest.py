"""Ingest tasks: plan, write each missing shard, commit."""

from __future__ import annotations

import os
import time
from contextlib import closing
from typing import Any

from prefect import get_run_logger, task, unmapped
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event
from prefect.futures import as_completed
from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner
from prefect.tasks import exponential_backoff

from pets_core.config.pipeline import PipelineConfig
from pets_core.config.source import IngestConfig
from pets_core.data.gallery import class_warnings
from pets_core.data.ingest.commit import commit, ingest_progress
from pets_core.data.ingest.plan import plan_dataset
from pets_core.data.ingest.shards import write_shard
from pets_core.errors import PetsError, without_queries
from pets_core.records.dataset import DatasetManifest, DatasetPlan, ShardPlan
from tasks.execution.progress import ProgressDisplay
from tasks.execution.retries import SHORT_TASK, should_retry

__all__ = ["commit_data_set", "ingest_dataset", "plan_data_set", "write_one_shard"]


@task(name="plan data set", **SHORT_TASK)
def plan_data_set(config: PipelineConfig) -> DatasetPlan:
    """Plan splits and shards, and find the shards that the store already has."""
    plan = plan_dataset(config)
    get_run_logger().info("Writing %d of %d shards", len(plan.pending), len(plan.shards))
    return plan


@task(
    name="write shard",
    cache_policy=NO_CACHE,
    retries=3,
    retry_delay_seconds=exponential_backoff(2),
    retry_jitter_factor=0.5,
    retry_condition_fn=should_retry,
)
def write_one_shard(config: PipelineConfig, plan: DatasetPlan, shard: ShardPlan) -> int:
    """Write one shard. The journal in the store, not Prefect, records finished shards.

    Returns:
        Number of photos planned for the shard.
    """
    write_shard(config, plan, shard)
    return shard.num_photos


@task(name="commit data set", **SHORT_TASK)
def commit_data_set(config: PipelineConfig, plan: DatasetPlan) -> DatasetManifest:
    """Check all shards and commit them as a version; emit an event if the version is new."""
    manifest = commit(config, plan)
    if manifest.fingerprint != plan.parent:
        emit_event(
            "pets.dataset.committed",
            resource={
                "prefect.resource.id": f"pets.dataset.{manifest.name}",
                "prefect.resource.name": manifest.name,
                "pets.fingerprint": manifest.fingerprint,
            },
            payload={"num_rows": manifest.num_rows, "url": without_queries(manifest.url)},
        )
    for warning in class_warnings(manifest):
        get_run_logger().warning(warning)
    return manifest


def ingest_dataset(config: PipelineConfig) -> DatasetManifest:
    """Ingest the data set, or find its version in the store. Call it in a flow."""
    runner = _runner(config.ingest)
    plan = plan_data_set(config)
    if plan.pending:
        _write_shards(config, plan, runner)
    return commit_data_set(config, plan)


def _write_shards(config: PipelineConfig, plan: DatasetPlan, runner: TaskRunner[Any]) -> None:
    done, total, started = 0, sum(s.num_photos for s in plan.pending), time.monotonic()
    # A task needs only its own shard.
    header = plan.model_copy(update={"shards": ()})
    parameters = {
        "config": unmapped(config),
        "plan": unmapped(header),
        "shard": list(plan.pending),
    }
    with closing(ProgressDisplay(get_run_logger())) as display, runner:
        futures = runner.map(write_one_shard, parameters)  # type: ignore[arg-type]
        for future in as_completed(list(futures)):
            done += future.result()
            display(ingest_progress(done, total, time.monotonic() - started))


def _runner(config: IngestConfig) -> TaskRunner[Any]:
    num_workers = config.num_workers or os.cpu_count() or 1
    if config.runner == "threads":
        return ThreadPoolTaskRunner(max_workers=num_workers)
    if config.runner == "processes":
        return ProcessPoolTaskRunner(max_workers=num_workers)
    try:
        if config.runner == "dask":
            from prefect_dask.task_runners import DaskTaskRunner

            if config.runner_address:
                return DaskTaskRunner(address=config.runner_address)
            workers = {"n_workers": num_workers, "threads_per_worker": 1}
            return DaskTaskRunner(cluster_kwargs={**workers, "dashboard_address": None})
        from prefect_ray import RayTaskRunner

        local = {"num_cpus": num_workers, "include_dashboard": False}
        # Without "local", Ray joins a cluster that already runs on this machine.
        ray: TaskRunner[Any] = RayTaskRunner(
            address=config.runner_address or "local",
            init_kwargs=None if config.runner_address else local,
        )
        return ray
    except ImportError as error:
        raise PetsError(
            f"ingest.runner = {config.runner}: {error.name} is not installed. Run "
            f"pip install 'pets-pipeline[{config.runner}]'"
        ) from error
