"""A process whose flow run was taken from it ends, so that no run is worked on by two."""

from __future__ import annotations

import contextvars
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas import FlowRun
from prefect.logging.handlers import APILogWorker
from prefect.runtime import flow_run
from prefect.states import Cancelled

__all__ = ["ends_with_its_run"]

_POLL_SECONDS = 10.0
_CANCEL_SECONDS = 45.0
"""A worker that is there has ended a run that is to be cancelled by then."""
_EXIT_CODE = 143
_PATIENCE_SECONDS = 5.0
_LAST_SECONDS = 15


@contextmanager
def ends_with_its_run(
    logger: Any, on_cancelled: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """End this process at once when its flow run goes on elsewhere, or is over, or is cancelled.

    Prefect leaves a run to whoever says last what its state is: a process that was taken for dead,
    whose worker died, or that lost the server for a while, goes on beside the one that took over.
    Ranks end with this process, after a last checkpoint. A server that is away changes nothing.

    Args:
        logger: Told why this process ends.
        on_cancelled: Called before it ends where nobody takes the run over.
    """
    if flow_run.id is None:
        yield
        return
    over = threading.Event()
    watch = _Watch(UUID(flow_run.id), flow_run.run_count, logger, on_cancelled, over)
    # The thread is to talk to the server of this context.
    thread = threading.Thread(target=contextvars.copy_context().run, args=(watch,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()


class _Watch:
    def __init__(
        self,
        run_id: UUID,
        attempt: int,
        logger: Any,
        on_cancelled: Callable[[], None],
        over: threading.Event,
    ) -> None:
        self._run_id, self._attempt, self._logger = run_id, attempt, logger
        self._on_cancelled, self._over, self._cancelling_since = on_cancelled, over, 0.0

    def __call__(self) -> None:
        with get_client(sync_client=True) as client:
            while True:
                try:
                    run = client.read_flow_run(self._run_id)
                except Exception:  # noqa: BLE001 - whatever it is, the work goes on without the server
                    run = None
                if self._over.is_set():
                    return
                if run and (reason := self._reason(run)):
                    self._end(client, run, reason)
                self._over.wait(_POLL_SECONDS)

    def _reason(self, run: FlowRun) -> str:
        """Why this process is to end; empty where the run is still its own."""
        state = run.state
        if run.run_count != self._attempt:
            return f"is in its attempt {run.run_count}, and this is attempt {self._attempt}"
        if state is None or state.is_running():
            return ""
        if not state.is_cancelling():
            return f"is {state.name}"
        self._cancelling_since = self._cancelling_since or time.monotonic()
        waited = time.monotonic() - self._cancelling_since
        return "is to be cancelled, and no worker does it" if waited > _CANCEL_SECONDS else ""

    def _end(self, client: SyncPrefectClient, run: FlowRun, reason: str) -> None:
        # Whatever hangs on the way out, the kernel ends this process then.
        signal.alarm(_LAST_SECONDS)
        self._logger.warning("the flow run %s: this process ends", reason)
        state = run.state
        try:
            if state and (state.is_cancelling() or state.is_cancelled() or state.is_failed()):
                self._on_cancelled()
            if state and state.is_cancelling():
                client.set_flow_run_state(self._run_id, Cancelled())
            _send_logs()
        finally:
            # Whatever else Prefect would do on the way out changes a state that is not its own.
            os._exit(_EXIT_CODE)


def _send_logs() -> None:
    """Have the server hear what was said last, if it still listens."""
    # In a thread of its own: this one's event loop may be the one that sends them.
    drain = partial(APILogWorker.drain_all, timeout=_PATIENCE_SECONDS)
    sender = threading.Thread(target=drain, daemon=True)
    sender.start()
    sender.join(_PATIENCE_SECONDS)
