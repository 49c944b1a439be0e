"""Ends a rank that hangs, and tells where it stood."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable

__all__ = ["Watchdog"]


class Watchdog:
    """A context in which work must be heard of; when it is not, somebody is told, once.

    Ranks wait for each other in every step, so that one that hangs would hold all GPUs for hours.

    Args:
        timeout_seconds: The longest silence.
        on_stall: Given the stack of every thread, from another thread.
    """

    def __init__(self, timeout_seconds: float, on_stall: Callable[[str], None]) -> None:
        self._timeout_seconds, self._on_stall = timeout_seconds, on_stall
        self._last = time.monotonic()

    def beat(self) -> None:
        """Work goes on."""
        self._last = time.monotonic()

    def __enter__(self) -> Watchdog:
        # One for each time: the thread of the time before may not have seen its own yet.
        self._left = threading.Event()
        self.beat()
        threading.Thread(
            target=self._watch, args=(self._left,), name="watchdog", daemon=True
        ).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()

    def _watch(self, left: threading.Event) -> None:
        while True:
            silence = time.monotonic() - self._last
            if silence > self._timeout_seconds:
                self._on_stall(_stacks())
                return
            if left.wait(self._timeout_seconds - silence + 0.01):
                return


def _stacks() -> str:
    """Where every thread but this one stands, the main thread first."""
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
