"""Run a stage as a flow run of a deployment, on another work pool, and wait for its result."""

from __future__ import annotations

import time
from collections.abc import Sequence
from hashlib import sha256
from typing import Any, cast
from uuid import UUID

import httpx
from prefect import State, Task, get_run_logger
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas import FlowRun
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterIdempotencyKey,
    FlowRunFilterParentFlowRunId,
)
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.settings import get_current_settings
from prefect.states import Cancelling
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from pets_core.errors import PetsError
from tasks.execution.run_guard import exit_when_superseded

__all__ = ["check_deployment", "delegate", "map_in_threads"]

_POLL_SECONDS = 2.0
_WARN_INTERVAL_SECONDS = 60.0
_MAX_FLOW_RUNS = 100
_PREFIX = "Flow run encountered an exception: "


def check_deployment(deployment: str) -> None:
    """Check that a deployment exists.

    Raises:
        PetsError: No deployment has that name, or no Prefect server is configured.
    """
    if get_current_settings().api.url is None:
        raise PetsError(
            f"launch.deployment = {deployment}: PREFECT_API_URL is not set, and a temporary server "
            "has no deployments. Set PREFECT_API_URL, or remove launch.deployment"
        )
    with get_client(sync_client=True) as client:
        try:
            client.read_deployment_by_name(deployment)
        except ObjectNotFound as error:
            raise PetsError(
                f"launch.deployment = {deployment}: no such deployment. Run `pets deploy` first"
            ) from error


def delegate(deployment: str, stage: str, request_url: str, logger: Any) -> None:
    """Run a stage as a flow run of a deployment, and wait until it ends. Call it in a task.

    If a flow run of the same request is still active, from an earlier attempt or from a run that
    this one resumes, the call waits for that one. If the call is interrupted, it cancels the
    flow run.

    Args:
        deployment: "flow name/deployment name".
        stage: Name of the stage.
        request_url: URL of the request in the store.
        logger: Logs the flow run that runs the stage.

    Raises:
        PetsError: The stage failed or was cancelled.
        RuntimeError: Its process crashed; a retry starts a new flow run.
    """
    digest = sha256(request_url.encode()).hexdigest()[:16]
    keys = [f"{digest}-{number}" for number in range(1, _MAX_FLOW_RUNS + 1)]

    def cancel() -> None:
        _cancel(_with_keys(keys), logger)

    def cancel_all() -> None:
        # Other threads may wait for other stages of this run.
        cancel()
        cancel_stages(logger)

    with exit_when_superseded(logger, cancel_all), get_client(sync_client=True) as client:
        try:
            _check_not_cancelled(client)
            started = _find_or_start(
                client, deployment, f"{stage} of {flow_run.name}", request_url, keys, logger
            )
            logger.info("Stage %s runs in flow run %s (%s)", stage, started.name, started.id)
            ended = _wait(client, started.id, logger)
        except BaseException:
            cancel()
            raise
    state = ended.state
    assert state is not None, "the flow run has ended"
    if state.is_completed():
        return
    reason = (state.message or "").removeprefix(_PREFIX).removeprefix("PetsError: ")
    message = f"{stage} ended as {state.name} in flow run {ended.name} ({ended.id}): {reason}"
    if state.is_crashed():
        raise RuntimeError(message)
    raise PetsError(message)


def map_in_threads(task: Task[..., Any], given: dict[str, Any], count: int) -> list[State[Any]]:
    """Map a task that delegates, one thread per task run; an interrupt cancels all stages.

    Args:
        task: The task to map.
        given: Parameters of the task, as for `Task.map`.
        count: Number of task runs.

    Returns:
        The final state of each task run, in order.
    """
    runner: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=count)
    with runner:
        futures = list(runner.map(task, given))
        try:
            for future in futures:
                future.wait()
        except BaseException:
            # The threads wait for their stages, and this process waits for the threads.
            cancel_stages(get_run_logger())
            raise
        return [future.state for future in futures]


def cancel_stages(logger: Any) -> None:
    """Cancel the active flow runs that the current flow run started."""
    parent = FlowRunFilterParentFlowRunId(any_=[UUID(flow_run.id)])
    _cancel(FlowRunFilter(parent_flow_run_id=parent), logger)


def _check_not_cancelled(client: SyncPrefectClient) -> None:
    """Raise a `PetsError` if the current flow run is cancelled, to start no more stages."""
    state = client.read_flow_run(UUID(flow_run.id)).state if flow_run.id else None
    if state and (state.is_cancelling() or state.is_cancelled()):
        raise PetsError("the flow run is cancelled")


def _find_or_start(
    client: SyncPrefectClient,
    deployment: str,
    name: str,
    request_url: str,
    keys: Sequence[str],
    logger: Any,
) -> FlowRun:
    """Return the active flow run of a request, or start one after all earlier ones ended."""
    runs = client.read_flow_runs(flow_run_filter=_with_keys(keys))
    for run in runs:
        if _has_ended(run):
            continue
        if run.state is None or not run.state.is_cancelling():
            return run
        # It still writes its last checkpoint. The next flow run must not run in parallel.
        _wait(client, run.id, logger)
    if len(runs) >= len(keys):
        raise PetsError(f"{name}: started {len(runs)} times without finishing")
    return cast(
        FlowRun,
        run_deployment(
            deployment,
            parameters={"request_url": request_url},
            flow_run_name=name,
            timeout=0,
            idempotency_key=keys[len(runs)],
        ),
    )


def _with_keys(keys: Sequence[str]) -> FlowRunFilter:
    return FlowRunFilter(idempotency_key=FlowRunFilterIdempotencyKey(any_=list(keys)))


def _has_ended(run: FlowRun) -> bool:
    return run.state is not None and run.state.is_final()


def _wait(client: SyncPrefectClient, run_id: UUID, logger: Any) -> FlowRun:
    """Poll a flow run until it ends, also while the server is unreachable."""
    warned_at = time.monotonic()
    while True:
        run, problem = _read_flow_run(client, run_id)
        if run and _has_ended(run):
            return run
        if run and run.state and run.state.is_scheduled():
            problem = (
                f"Flow run {run.name} is waiting for a worker of work pool {run.work_pool_name}. "
                "If none runs, start one with `prefect worker start --pool "
                f"{run.work_pool_name}`"
            )
        if problem and time.monotonic() - warned_at > _WARN_INTERVAL_SECONDS:
            warned_at = time.monotonic()
            logger.warning(problem)
        time.sleep(_POLL_SECONDS)


def _read_flow_run(client: SyncPrefectClient, run_id: UUID) -> tuple[FlowRun | None, str]:
    """Return a flow run, or None and why the server cannot be read for now."""
    try:
        return client.read_flow_run(run_id), ""
    except httpx.HTTPStatusError as error:
        # A client error, such as rejected credentials, is permanent.
        if error.response.status_code < httpx.codes.INTERNAL_SERVER_ERROR:
            raise
        return None, f"Prefect server failed; the state of the stage is unknown: {error}"
    except httpx.TransportError as error:
        return None, f"Prefect server unreachable; the state of the stage is unknown: {error}"


def _cancel(flow_runs: FlowRunFilter, logger: Any) -> None:
    try:
        with get_client(sync_client=True) as client:
            for run in client.read_flow_runs(flow_run_filter=flow_runs):
                if not _has_ended(run):
                    client.set_flow_run_state(run.id, Cancelling())
    except Exception as error:  # noqa: BLE001 - must not hide the error that ended the wait
        logger.warning("Stage not cancelled: %s", error)
