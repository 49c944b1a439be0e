"""Stop all ranks before the same batch when one of them receives SIGTERM."""

from __future__ import annotations

import os
import signal
import threading
from datetime import timedelta
from types import FrameType

from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import PrefixStore, Store

__all__ = ["Interrupted", "Interruption", "elastic_store"]

_POLL_SECONDS = 0.2
_TIMEOUT = timedelta(seconds=5)
"""Each rank replies from its own thread; one that does not reply in time has ended or hangs."""


class Interrupted(Exception):  # noqa: N818 - a regular end: a checkpoint was written
    """Training stopped early after writing a checkpoint, and can be resumed."""


class Interruption:
    """Context manager that stops training after SIGTERM (spot reclaim, cancelled run).

    Ranks receive the signal during different batches, and a rank that stopped alone would leave
    the others waiting for it. They therefore exchange the number of their current batch through
    the launcher's store; the highest number is the last batch that all of them process.

    Args:
        rank: Number of this rank.
        world_size: Number of ranks.
        store: Store shared by the ranks; not needed for a single rank.
    """

    def __init__(self, rank: int = 0, world_size: int = 1, store: Store | None = None) -> None:
        self._rank, self._world_size, self._store = rank, world_size, store
        self._signalled, self._agreed, self._exited = (threading.Event() for _ in range(3))
        self._lock = threading.Lock()
        self._is_stopping, self._current_batch, self._last_batch = False, -1, -1
        self._previous_handler: object = None

    def __enter__(self) -> Interruption:
        self._previous_handler = signal.signal(signal.SIGTERM, self._handle_signal)
        threading.Thread(target=self._watch_for_stop, name="interruption", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._exited.set()
        signal.signal(signal.SIGTERM, self._previous_handler)  # type: ignore[arg-type]

    def should_continue(self, batch: int) -> bool:
        """Return whether to process this batch; the result is the same on every rank.

        Every rank calls it for the same batches in the same order.
        """
        with self._lock:
            if not self._is_stopping:
                self._current_batch = batch
                return True
        self._agreed.wait()
        return batch <= self._last_batch

    def _handle_signal(self, number: int, frame: FrameType | None) -> None:
        self._signalled.set()

    def _watch_for_stop(self) -> None:
        try:
            self._agree_on_last_batch()
        except DistError:
            if self._exited.is_set():
                return
            # A rank or the store has ended: a collective of this rank would never complete.
            os._exit(1)

    def _agree_on_last_batch(self) -> None:
        while not self._signalled.wait(_POLL_SECONDS) and not self._is_signalled_elsewhere():
            if self._exited.is_set():
                return
        if self._store:
            self._store.set("stop", "1")
        with self._lock:
            # From here on no batch starts before all ranks have agreed.
            self._is_stopping, own = True, self._current_batch
        self._last_batch = self._max_over_ranks(own)
        self._agreed.set()

    def _is_signalled_elsewhere(self) -> bool:
        return self._store is not None and self._store.check(["stop"])

    def _max_over_ranks(self, own: int) -> int:
        if self._store is None:
            return own
        self._store.set(f"batch-{self._rank}", str(own))
        keys = [f"batch-{rank}" for rank in range(self._world_size)]
        self._store.wait(keys, _TIMEOUT)
        return max(int(self._store.get(key)) for key in keys)


def elastic_store() -> Store:
    """Open a new connection to torch elastic's store, for use by one thread."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return PrefixStore("interruption", TCPStore(host, port, is_master=False, timeout=_TIMEOUT))
