"""A stage done by another flow run, of a deployment on another worker pool; waited for here."""

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
from tasks.execution.run_guard import ends_with_its_run

__all__ = ["check_deployment", "delegate", "in_threads"]

_POLL_SECONDS = 2.0
_LATE_SECONDS = 60.0
_MAX_ASKED = 100
_PREFIX = "Flow run encountered an exception: "


def check_deployment(deployment: str) -> None:
    """Refuse a deployment that cannot be asked.

    Raises:
        PetsError: There is none of that name, or no server that could have it.
    """
    if get_current_settings().api.url is None:
        raise PetsError(
            f"launch.deployment = {deployment}: PREFECT_API_URL is not set, and a temporary server "
            "has no deployments"
        )
    with get_client(sync_client=True) as client:
        try:
            client.read_deployment_by_name(deployment)
        except ObjectNotFound as error:
            raise PetsError(
                f"launch.deployment = {deployment}: no such deployment; `pets deploy` makes it"
            ) from error


def delegate(deployment: str, stage: str, request_url: str, logger: Any) -> None:
    """Have a deployment do a stage, and wait until it is done; to be called in a task.

    Whoever asks for the same again, another attempt or another run that goes on with this one,
    waits for the flow run that is still at it. What ends this call before it cancels that.

    Args:
        deployment: "flow name/deployment name".
        stage: The stage.
        request_url: What is asked, in the store.
        logger: Told where the stage is done.

    Raises:
        PetsError: The stage failed there or was cancelled.
        RuntimeError: Its process is gone; another attempt asks again.
    """
    digest = sha256(request_url.encode()).hexdigest()[:16]
    keys = [f"{digest}-{number}" for number in range(1, _MAX_ASKED + 1)]

    def cancel() -> None:
        wanted = FlowRunFilter(idempotency_key=FlowRunFilterIdempotencyKey(any_=keys))
        _cancel(wanted, logger)

    def cancel_all() -> None:
        # Other stages of this run may be waited for in other threads.
        cancel()
        cancel_stages(logger)

    with ends_with_its_run(logger, cancel_all), get_client(sync_client=True) as client:
        try:
            _refuse_if_cancelled(client)
            asked = _ask(
                client, deployment, f"{stage} of {flow_run.name}", request_url, keys, logger
            )
            logger.info("%s is done in flow run %s (%s)", stage, asked.name, asked.id)
            ended = _wait(client, asked.id, logger)
        except BaseException:
            cancel()
            raise
    state = ended.state
    assert state is not None, "it has ended"
    if state.is_completed():
        return
    reason = (state.message or "").removeprefix(_PREFIX).removeprefix("PetsError: ")
    said = f"{stage} ended as {state.name} in flow run {ended.name} ({ended.id}): {reason}"
    if state.is_crashed():
        raise RuntimeError(said)
    raise PetsError(said)


def in_threads(task: Task[..., Any], parameters: dict[str, Any], count: int) -> list[State[Any]]:
    """Map a task that delegates, each in a thread of its own; all stages end with this process.

    Args:
        task: The task.
        parameters: Of `map`.
        count: How many are mapped.

    Returns:
        The last state of each, in order.
    """
    runner: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=count)
    with runner:
        futures = list(runner.map(task, parameters))
        try:
            for future in futures:
                future.wait()
        except BaseException:
            # Threads wait for their stages, and this process for the threads.
            cancel_stages(get_run_logger())
            raise
        return [future.state for future in futures]


def cancel_stages(logger: Any) -> None:
    """Cancel the flow runs that the present one asked for and that are still at it."""
    parent = FlowRunFilterParentFlowRunId(any_=[UUID(flow_run.id)])
    _cancel(FlowRunFilter(parent_flow_run_id=parent), logger)


def _refuse_if_cancelled(client: SyncPrefectClient) -> None:
    """Ask for nothing more once the present flow run is to end."""
    state = client.read_flow_run(UUID(flow_run.id)).state if flow_run.id else None
    if state and (state.is_cancelling() or state.is_cancelled()):
        raise PetsError("the flow run is cancelled")


def _ask(
    client: SyncPrefectClient,
    deployment: str,
    name: str,
    request_url: str,
    keys: Sequence[str],
    logger: Any,
) -> FlowRun:
    """The flow run that is at it, or a new one once all before it have ended."""
    runs = _asked_before(client, keys)
    for run in runs:
        if _has_ended(run):
            continue
        if run.state is None or not run.state.is_cancelling():
            return run
        # It writes a last checkpoint, and would be beside the next one.
        _wait(client, run.id, logger)
    if len(runs) >= len(keys):
        raise PetsError(f"{name}: asked for {len(runs)} times, and it never came to its end")
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


def _asked_before(client: SyncPrefectClient, keys: Sequence[str]) -> list[FlowRun]:
    wanted = FlowRunFilter(idempotency_key=FlowRunFilterIdempotencyKey(any_=list(keys)))
    return client.read_flow_runs(flow_run_filter=wanted)


def _has_ended(run: FlowRun) -> bool:
    return run.state is not None and run.state.is_final()


def _wait(client: SyncPrefectClient, run_id: UUID, logger: Any) -> FlowRun:
    """Look again and again until a flow run has ended; a server that is away is waited for, too."""
    warned_at = time.monotonic()
    while True:
        run, trouble = _look(client, run_id)
        if run and _has_ended(run):
            return run
        if run and run.state and run.state.is_scheduled():
            trouble = (
                f"no worker of pool {run.work_pool_name} has taken flow run {run.name} yet: all "
                f"are busy, or none is there (prefect worker start --pool {run.work_pool_name})"
            )
        if trouble and time.monotonic() - warned_at > _LATE_SECONDS:
            warned_at = time.monotonic()
            logger.warning(trouble)
        time.sleep(_POLL_SECONDS)


def _look(client: SyncPrefectClient, run_id: UUID) -> tuple[FlowRun | None, str]:
    """A flow run, or why the server does not tell of it for now."""
    try:
        return client.read_flow_run(run_id), ""
    except httpx.HTTPStatusError as error:
        # Credentials that are refused stay refused.
        if error.response.status_code < httpx.codes.INTERNAL_SERVER_ERROR:
            raise
        return None, f"the Prefect server cannot tell how far the stage is: {error}"
    except httpx.TransportError as error:
        return None, f"the Prefect server is away, and how far the stage is unknown: {error}"


def _cancel(wanted: FlowRunFilter, logger: Any) -> None:
    try:
        with get_client(sync_client=True) as client:
            for run in client.read_flow_runs(flow_run_filter=wanted):
                if not _has_ended(run):
                    client.set_flow_run_state(run.id, Cancelling())
    except Exception as error:  # noqa: BLE001 - what ended the wait is to be told, not this
        logger.warning("the stage was not cancelled: %s", error)
