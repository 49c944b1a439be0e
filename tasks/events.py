"""Prefect events of models: pets.model.promoted, pets.model.rejected, pets.model.rolled_back."""

from __future__ import annotations

import asyncio
import logging
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from prefect import get_run_logger
from prefect.context import FlowRunContext, TaskRunContext
from prefect.events import Event, emit_event
from prefect.events.clients import get_events_client
from prefect.settings import get_current_settings

from pets_core.errors import without_queries
from pets_core.records.evaluation import EvalReport
from pets_core.registry.aliases import (
    AliasVersion,
    Candidate,
    GatedConfig,
    absolute,
    load_candidate,
)

__all__ = ["SEND_SECONDS", "emit_move", "emit_rejection", "send_move"]

SEND_SECONDS = 5.0
"""Longest time that a command waits for the server, seconds."""


def emit_move(store: str, alias: str, version: AliasVersion) -> None:
    """Emit that an alias moved to a model. Call it in a task or flow; it never fails the run."""
    if not _is_in_run():
        return
    try:
        emit_event(**_move(store, alias, version))
    except Exception as error:  # noqa: BLE001 - the alias has moved, whatever fails here
        get_run_logger().warning("The event of %s was not sent: %s", alias, error)


def emit_rejection(config: GatedConfig, report: EvalReport) -> None:
    """Emit that a model did not pass the gate. Call it in a flow; it never fails the run."""
    if not _is_in_run():
        return
    try:
        model, reasons = load_candidate(report), list(report.verdict.reasons)
        emit_event(**_fields("rejected", config.store, config.gate.alias, model, reasons=reasons))
    except Exception as error:  # noqa: BLE001 - the evaluation is complete, whatever fails here
        get_run_logger().warning("The event of the rejection was not sent: %s", error)


def send_move(store: str, alias: str, version: AliasVersion) -> str | None:
    """Send that an alias moved to a model, outside of runs, if a Prefect server is configured.

    Returns:
        Reason why the event was not sent within `SEND_SECONDS`; None if it was sent, or no server
        is configured.
    """
    if get_current_settings().api.url is None:
        return None
    # It would log the error that this function returns.
    logging.getLogger("prefect.events.clients").setLevel(logging.ERROR)
    try:
        event = Event.model_validate(_move(store, alias, version))
        asyncio.run(asyncio.wait_for(_send(event), SEND_SECONDS))
    except TimeoutError:
        return f"no answer within {SEND_SECONDS:.0f} s"
    except Exception as error:  # noqa: BLE001 - the alias has moved, whatever fails here
        return f"{type(error).__name__}: {error}"
    return None


async def _send(event: Event) -> None:
    async with get_events_client(reconnection_attempts=0) as client:
        await client.emit(event)


def _is_in_run() -> bool:
    # Outside of runs and without a server, Prefect would start one for an event.
    return FlowRunContext.get() is not None or TaskRunContext.get() is not None


def _move(store: str, alias: str, version: AliasVersion) -> dict[str, Any]:
    """Return the fields of the event of a move; a repeated event has the same id."""
    name = version.why.replace(" ", "_")
    label = version.name.removesuffix(".json")
    fields = _fields(name, store, alias, version.model, alias_version=label)
    resource = fields["resource"]["prefect.resource.id"]
    return fields | {"id": uuid5(NAMESPACE_URL, f"{resource}/{name}/{label}")}


def _fields(
    name: str, store: str, alias: str, model: Candidate, **details: object
) -> dict[str, Any]:
    return {
        "event": f"pets.model.{name}",
        "resource": {
            "prefect.resource.id": f"pets.model.{model.dataset_name}.{alias}",
            "prefect.resource.name": f"{model.dataset_name}@{alias}",
            "pets.dataset": model.dataset_name,
            "pets.alias": alias,
        },
        "payload": {
            "dataset": model.dataset_name,
            "alias": alias,
            "run_id": model.run_id,
            "model_url": without_queries(absolute(store, model.model_url)),
            "metric": model.metric.model_dump(include={"name", "value", "low", "high", "unit"}),
            **details,
        },
    }
