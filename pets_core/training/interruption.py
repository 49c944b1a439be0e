"""SIGTERM, heard by one rank and heeded by all before the same batch."""

from __future__ import annotations

import os
import signal
import threading
from datetime import timedelta
from types import FrameType
from typing import Protocol

from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import PrefixStore, Store

__all__ = ["Interrupted", "Interruption", "StepGate", "elastic_store"]

_POLL_SECONDS = 0.2
_PATIENCE = timedelta(seconds=5)
"""Each rank answers from a thread of its own; one that does not by then is gone or hangs."""


class Interrupted(Exception):  # noqa: N818 - no error: a checkpoint was written, as was asked
    """Training was told to end, and can be gone on with."""


class StepGate(Protocol):
    """Asked before every batch; every rank asks for the same ones in the same order."""

    def may_begin(self, batch: int) -> bool:
        """Whether this one is to be worked on; once it is not, no later one is."""


class Interruption:
    """A context in which SIGTERM (a spot machine's notice, a cancelled run) ends training tidily.

    Ranks wait for each other only here and there, so that a signal reaches them at different
    batches, and one that stopped by itself would leave the others waiting for it. Through the
    launcher's store they tell each other which batch each has begun; the latest is the last.

    Args:
        rank: Of this process.
        world_size: Number of ranks.
        store: Shared by the ranks; not needed by a single one.
    """

    def __init__(self, rank: int = 0, world_size: int = 1, store: Store | None = None) -> None:
        self._rank, self._world_size, self._store = rank, world_size, store
        self._told, self._agreed, self._left = (threading.Event() for _ in range(3))
        self._lock = threading.Lock()
        self._halting, self._begun, self._last = False, -1, -1
        self._before: object = None

    def __enter__(self) -> Interruption:
        self._before = signal.signal(signal.SIGTERM, self._tell)
        threading.Thread(target=self._agree, name="interruption", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        signal.signal(signal.SIGTERM, self._before)  # type: ignore[arg-type]

    def may_begin(self, batch: int) -> bool:
        """Whether this batch is to be worked on, the same on every rank."""
        with self._lock:
            if not self._halting:
                self._begun = batch
                return True
        self._agreed.wait()
        return batch <= self._last

    def _tell(self, number: int, frame: FrameType | None) -> None:
        self._told.set()

    def _agree(self) -> None:
        try:
            self._agree_with_all()
        except DistError:
            if self._left.is_set():
                return
            # A rank or the store is gone: gradients that this one waits for never come.
            os._exit(1)

    def _agree_with_all(self) -> None:
        while not self._told.wait(_POLL_SECONDS) and not self._told_elsewhere():
            if self._left.is_set():
                return
        if self._store:
            self._store.set("told", "1")
        with self._lock:
            # From here on no batch begins before all ranks have agreed.
            self._halting, own = True, self._begun
        self._last = self._latest_begun(own)
        self._agreed.set()

    def _told_elsewhere(self) -> bool:
        return self._store is not None and self._store.check(["told"])

    def _latest_begun(self, own: int) -> int:
        if self._store is None:
            return own
        self._store.set(f"begun-{self._rank}", str(own))
        keys = [f"begun-{rank}" for rank in range(self._world_size)]
        self._store.wait(keys, _PATIENCE)
        return max(int(self._store.get(key)) for key in keys)


def elastic_store() -> Store:
    """A connection of this thread's own to the store that torch elastic started."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return PrefixStore("interruption", TCPStore(host, port, is_master=False, timeout=_PATIENCE))
