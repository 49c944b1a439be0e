"""Watchdog that detects a hanging rank and reports its stack traces."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable

__all__ = ["Watchdog"]


class Watchdog:
    """Context manager that calls `on_stall` once if no heartbeat arrives in time.

    Ranks wait for each other in every step, so one that hangs would block all GPUs for hours.

    Args:
        timeout_seconds: Longest time between two heartbeats.
        on_stall: Called with the stack of every thread, from another thread.
    """

    def __init__(self, timeout_seconds: float, on_stall: Callable[[str], None]) -> None:
        self._timeout_seconds, self._on_stall = timeout_seconds, on_stall
        self._last = time.monotonic()

    def beat(self) -> None:
        """Send a heartbeat."""
        self._last = time.monotonic()

    def __enter__(self) -> Watchdog:
        # A new event each time: the thread of an earlier context may still read the old one.
        self._exited = threading.Event()
        self.beat()
        threading.Thread(
            target=self._watch, args=(self._exited,), name="watchdog", daemon=True
        ).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._exited.set()

    def _watch(self, exited: threading.Event) -> None:
        while True:
            silence = time.monotonic() - self._last
            if silence > self._timeout_seconds:
                self._on_stall(_stacks())
                return
            if exited.wait(self._timeout_seconds - silence + 0.01):
                return


def _stacks() -> str:
    """Return the stack of every thread except this one, the main thread first."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = {
        names.get(ident, str(ident)): frame
        for ident, frame in sys._current_frames().items()
        if ident != threading.get_ident()
    }
    return "\n".join(
        f"thread {name}:\n{''.join(traceback.format_stack(frames[name]))}"
        for name in sorted(frames, key=lambda name: (name != "MainThread", name))
    )
