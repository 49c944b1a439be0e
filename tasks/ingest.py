"""Ingest as tasks: plan, a task for each shard that is still to be written, commit."""

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
from pets_core.data.ingest.commit import commit, written
from pets_core.data.ingest.plan import plan_dataset
from pets_core.data.ingest.shards import write_shard
from pets_core.errors import PetsError, without_queries
from pets_core.records.dataset import DatasetManifest, DatasetPlan, ShardPlan
from tasks.execution.progress import ProgressDisplay
from tasks.execution.retries import SHORT_TASK, may_pass

__all__ = ["commit_data_set", "ingest_dataset", "plan_data_set", "write_one_shard"]


@task(name="plan data set", **SHORT_TASK)
def plan_data_set(config: PipelineConfig) -> DatasetPlan:
    """Decide what goes where, and what is in the store already."""
    plan = plan_dataset(config)
    get_run_logger().info("%d of %d shards are to be written", len(plan.pending), len(plan.shards))
    return plan


@task(
    name="write shard",
    cache_policy=NO_CACHE,
    retries=3,
    retry_delay_seconds=exponential_backoff(2),
    retry_jitter_factor=0.5,
    retry_condition_fn=may_pass,
)
def write_one_shard(config: PipelineConfig, plan: DatasetPlan, shard: ShardPlan) -> int:
    """Write one shard; the journal in the store, not Prefect, knows which are done.

    Returns:
        Photos planned for it.
    """
    write_shard(config, plan, shard)
    return shard.num_photos


@task(name="commit data set", **SHORT_TASK)
def commit_data_set(config: PipelineConfig, plan: DatasetPlan) -> DatasetManifest:
    """Check the shards as a whole and make them a version; tell of one that is new."""
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
    """Bring the photos into the store, or find them there; to be called in a flow."""
    runner = _runner(config.ingest)
    plan = plan_data_set(config)
    if plan.pending:
        _write_shards(config, plan, runner)
    return commit_data_set(config, plan)


def _write_shards(config: PipelineConfig, plan: DatasetPlan, runner: TaskRunner[Any]) -> None:
    done, total, started = 0, sum(s.num_photos for s in plan.pending), time.monotonic()
    # A task needs its own shard only.
    about = plan.model_copy(update={"shards": ()})
    parameters = {
        "config": unmapped(config),
        "plan": unmapped(about),
        "shard": list(plan.pending),
    }
    with closing(ProgressDisplay(get_run_logger())) as display, runner:
        futures = runner.map(write_one_shard, parameters)  # type: ignore[arg-type]
        for future in as_completed(list(futures)):
            done += future.result()
            display(written(done, total, time.monotonic() - started))


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

        own = {"num_cpus": num_workers, "include_dashboard": False}
        # Without "local", Ray would join a cluster that happens to run on this machine.
        ray: TaskRunner[Any] = RayTaskRunner(
            address=config.runner_address or "local",
            init_kwargs=None if config.runner_address else own,
        )
        return ray
    except ImportError as error:
        raise PetsError(
            f"ingest.runner = {config.runner}: {error.name} is not installed: "
            f"pip install 'pets-pipeline[{config.runner}]'"
        ) from error
