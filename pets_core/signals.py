"""Parent-death signal and immediate exit."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

__all__ = ["die_with_parent", "exit_with", "hard_exit"]

_PR_SET_PDEATHSIG = 1


def die_with_parent(with_signal: signal.Signals) -> None:
    """Ask Linux to send this process a signal when its parent ends; elsewhere do nothing.

    Linux sends it even if the parent is killed.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, with_signal)


def exit_with(work: Callable[[], int]) -> NoReturn:
    """Run `work` and end this process at once with the exit code that it returns.

    A fork must never return to its caller: an exception is printed, and the exit code is 1.
    """
    code = 1
    try:
        code = work()
    except BaseException:  # noqa: BLE001 - it ends here, whatever it is
        traceback.print_exc()
    finally:
        hard_exit(code)


def hard_exit(code: int) -> NoReturn:
    """End this process at once; an orderly exit takes torch more than a second."""
    try:
        # These fail where nobody reads the output any more.
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)
