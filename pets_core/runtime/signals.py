"""Forks, the parent-death signal, and immediate exit of a process."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

__all__ = ["SHUTDOWN_SECONDS", "die_with_parent", "exit_with", "fork", "hard_exit"]

SHUTDOWN_SECONDS = 20
"""Time from SIGTERM, when ranks write a checkpoint, to SIGKILL; shorter than the launcher waits."""

_PR_SET_PDEATHSIG = 1


def die_with_parent(with_signal: signal.Signals, parent: int | None = None) -> None:
    """Have Linux send this process a signal when its parent ends, even if that is killed.

    Args:
        with_signal: The signal.
        parent: Process id of the parent, if known. If that process has already ended, this one
            exits with code 1.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, with_signal)
    if parent is not None and os.getppid() != parent:
        hard_exit(1)


def fork(work: Callable[[], int], on_parent_death: signal.Signals) -> int:
    """Run `work` in a fork that receives a signal when this process ends; return its pid."""
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        die_with_parent(on_parent_death, parent)
        exit_with(work)
    return pid


def exit_with(work: Callable[[], int]) -> NoReturn:
    """Run `work` and exit at once with the code that it returns.

    A fork must never return to its caller: an exception is printed, and the exit code is 1.
    """
    code = 1
    try:
        code = work()
    except BaseException:  # noqa: BLE001 - the process exits here
        traceback.print_exc()
    finally:
        hard_exit(code)


def hard_exit(code: int) -> NoReturn:
    """Exit at once, without the cleanup of an orderly exit, which takes torch over a second."""
    try:
        # These fail if the reader of the output has exited.
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)
