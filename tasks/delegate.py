"""A stage done by another flow run, of a deployment on another worker pool; waited for here."""

from __future__ import annotations

import time
from typing import Any, cast
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas import FlowRun
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run, task_run
from prefect.states import Cancelling

from pets_core.errors import PetsError

__all__ = ["delegate"]

_POLL_SECONDS = 2.0
_LATE_SECONDS = 60.0
_PREFIX = "Flow run encountered an exception: "


def delegate(deployment: str, stage: str, request_url: str, logger: Any) -> None:
    """Have a deployment do a stage, and wait until it is done; to be called in a task.

    Another attempt at the run finds the flow run that an earlier one asked for, and waits for that.
    Whatever else ends this call cancels it.

    Args:
        deployment: "flow name/deployment name".
        stage: The stage.
        request_url: What is asked, in the store.
        logger: Told where the stage is done.

    Raises:
        PetsError: There is no such deployment, or the stage failed there or was cancelled.
        RuntimeError: Its process is gone; another attempt asks again.
    """
    try:
        asked = cast(
            FlowRun,
            run_deployment(
                deployment,
                parameters={"request_url": request_url},
                flow_run_name=f"{stage} of {flow_run.name}",
                timeout=0,
                idempotency_key=f"{flow_run.id}-{stage}-{task_run.run_count}",
            ),
        )
    except ObjectNotFound as error:
        raise PetsError(
            f"launch.deployment = {deployment}: no such deployment; `pets deploy` makes it"
        ) from error
    logger.info("%s is done in flow run %s (%s) of %s", stage, asked.name, asked.id, deployment)
    with get_client(sync_client=True) as client:
        try:
            ended = _wait(client, asked.id, logger)
        except BaseException:
            _cancel(client, asked.id, logger)
            raise
    state = ended.state
    if state is None or state.is_completed():
        return
    reason = (state.message or "").removeprefix(_PREFIX).removeprefix("PetsError: ")
    said = f"{stage} ended as {state.name} in flow run {ended.name} ({ended.id}): {reason}"
    if state.is_crashed():
        raise RuntimeError(said)
    raise PetsError(said)


def _wait(client: SyncPrefectClient, run_id: UUID, logger: Any) -> FlowRun:
    """Look again and again until a flow run has ended; a server that is away is waited for, too."""
    asked_at, told = time.monotonic(), False
    while True:
        try:
            run = client.read_flow_run(run_id)
        except httpx.HTTPError as error:
            logger.warning("the Prefect server cannot be asked how far the stage is: %s", error)
        else:
            if run.state and run.state.is_final():
                return run
            late = time.monotonic() - asked_at > _LATE_SECONDS
            if late and not told and run.state and run.state.is_scheduled():
                told = True
                pool = run.work_pool_name
                logger.warning(
                    "no worker of pool %s has taken flow run %s yet: all are busy, or none is "
                    "there (prefect worker start --pool %s)", pool, run.name, pool,
                )  # fmt: skip
        time.sleep(_POLL_SECONDS)


def _cancel(client: SyncPrefectClient, run_id: UUID, logger: Any) -> None:
    try:
        client.set_flow_run_state(run_id, Cancelling())
    except Exception as error:  # noqa: BLE001 - what ended the wait is to be told, not this
        logger.warning("flow run %s was not cancelled: %s", run_id, error)
