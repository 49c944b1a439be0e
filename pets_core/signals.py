"""How the processes of a run end together."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import NoReturn

__all__ = ["die_with_parent", "hard_exit"]

_PR_SET_PDEATHSIG = 1


def die_with_parent(with_signal: signal.Signals) -> None:
    """Ask Linux to send this process a signal when its parent ends; elsewhere do nothing.

    torch starts each rank in a session of its own, so that killing a process group misses them.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, with_signal)


def hard_exit(code: int) -> NoReturn:
    """End this process at once; an orderly exit takes torch more than a second."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
