"""Ends a process whose flow run was superseded, so that no two processes work on one run."""

from __future__ import annotations

import contextvars
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas import FlowRun
from prefect.logging.handlers import APILogWorker
from prefect.runtime import flow_run
from prefect.states import Cancelled

__all__ = ["exit_when_superseded"]

_POLL_SECONDS = 10.0
_CANCEL_SECONDS = 45.0
"""A running worker ends a run in state Cancelling within this time."""
_EXIT_CODE = 143
_SEND_TIMEOUT_SECONDS = 5.0
_EXIT_TIMEOUT_SECONDS = 15


@contextmanager
def exit_when_superseded(
    logger: Any, on_cancelled: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Exit this process if its flow run restarts elsewhere, ends or is cancelled during the block.

    Prefect does not stop an old process of a restarted run. If the process was assumed dead, lost
    its worker or lost the server for a while, it would run in parallel with its replacement.
    Ranks end with this process, after a last checkpoint. An unreachable server is ignored.

    Args:
        logger: Logs the reason of the exit.
        on_cancelled: Called before the exit if no other process takes the run over.
    """
    if flow_run.id is None:
        yield
        return
    over = threading.Event()
    watch = _Watch(UUID(flow_run.id), flow_run.run_count, logger, on_cancelled, over)
    # The thread needs the Prefect settings of this context.
    thread = threading.Thread(target=contextvars.copy_context().run, args=(watch,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()


@dataclass
class _Watch:
    run_id: UUID
    attempt: int
    logger: Any
    on_cancelled: Callable[[], None]
    over: threading.Event
    cancelling_since: float = 0.0

    def __call__(self) -> None:
        with get_client(sync_client=True) as client:
            while True:
                try:
                    run = client.read_flow_run(self.run_id)
                except Exception:  # noqa: BLE001 - the work continues without the server
                    run = None
                if self.over.is_set():
                    return
                if run and (reason := self._exit_reason(run)):
                    self._exit(client, run, reason)
                self.over.wait(_POLL_SECONDS)

    def _exit_reason(self, run: FlowRun) -> str:
        """Return why this process must exit, or "" while it owns the run."""
        state = run.state
        if run.run_count != self.attempt:
            return f"is in attempt {run.run_count} (this process runs attempt {self.attempt})"
        if state is None or state.is_running():
            return ""
        if not state.is_cancelling():
            return f"is {state.name}"
        self.cancelling_since = self.cancelling_since or time.monotonic()
        waited = time.monotonic() - self.cancelling_since
        return "is Cancelling, and no worker ended it" if waited > _CANCEL_SECONDS else ""

    def _exit(self, client: SyncPrefectClient, run: FlowRun, reason: str) -> None:
        # If anything below hangs, the kernel ends this process.
        signal.alarm(_EXIT_TIMEOUT_SECONDS)
        self.logger.warning("The flow run %s: exiting this process", reason)
        state = run.state
        try:
            if state and (state.is_cancelling() or state.is_cancelled() or state.is_failed()):
                self.on_cancelled()
            if state and state.is_cancelling():
                client.set_flow_run_state(self.run_id, Cancelled())
            _send_logs()
        finally:
            # A normal exit would let Prefect change the state of a run this process does not own.
            os._exit(_EXIT_CODE)


def _send_logs() -> None:
    """Send the last log lines to the server, if it can be reached in time."""
    # In another thread: the event loop of this one may be the one that sends them.
    drain = partial(APILogWorker.drain_all, timeout=_SEND_TIMEOUT_SECONDS)
    sender = threading.Thread(target=drain, daemon=True)
    sender.start()
    sender.join(_SEND_TIMEOUT_SECONDS)
