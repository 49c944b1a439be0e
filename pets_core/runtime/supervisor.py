"""Run the ranks of one machine as forks of this process, and stop all when one fails.

Does the work of torch elastic on one machine: starts a store, sets each rank's environment, and
stops all ranks when one fails. Ranks forked by elastic itself can hang: its agent has threads, and
a fork inherits every lock that a thread holds at that moment, such as that of glibc's resolver. The
process that calls this has a single thread.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NoReturn

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from pets_core.runtime.signals import SHUTDOWN_SECONDS, fork

__all__ = ["supervise_ranks"]

_STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
_WAITED_SIGNALS = _STOP_SIGNALS | {signal.SIGCHLD}
_HOST = "127.0.0.1"


def supervise_ranks(num_ranks: int, work: Callable[[], int]) -> int:
    """Run `work` in a fork for each rank until all have ended.

    When a rank fails, or this process receives SIGTERM, the other ranks receive SIGTERM and, after
    SHUTDOWN_SECONDS, SIGKILL. When this process is killed, the ranks are killed, too.

    Args:
        num_ranks: Number of ranks.
        work: Returns the exit code of its rank. With several ranks, its environment has RANK,
            LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT.

    Returns:
        0 if all ranks succeeded, else 1. The first rank that failed is printed.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _WAITED_SIGNALS)
    store, shared = _start_store(num_ranks) if num_ranks > 1 else (None, {})
    ranks = _Ranks()
    for rank in range(num_ranks):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if shared else {}
        ranks.running[_fork(partial(_run_rank, work, shared | own))] = rank
    ranks.wait()
    if store is not None:
        os.kill(store, signal.SIGKILL)
        os.waitpid(store, 0)
    return int(ranks.has_failed)


def _run_rank(work: Callable[[], int], environment: dict[str, str]) -> int:
    os.environ.update(environment)
    return work()


@dataclass
class _Ranks:
    """The running ranks.

    Attributes:
        running: Rank by process id.
        has_failed: Whether a rank failed or a stop signal arrived.
        kill_at: Time on the monotonic clock at which running ranks are killed; None for never.
    """

    running: dict[int, int] = field(default_factory=dict)
    has_failed: bool = False
    kill_at: float | None = None

    def wait(self) -> None:
        """Wait until all have ended; stop the others on a failure or a stop signal."""
        is_ending = False
        while self.running:
            number = _next_signal(self.kill_at)
            if number is None:
                self._send(signal.SIGKILL)
                self.kill_at = None
            self._reap()
            self.has_failed |= number in _STOP_SIGNALS
            if self.has_failed and not is_ending:
                is_ending = True
                self._send(signal.SIGTERM)
                self.kill_at = time.monotonic() + SHUTDOWN_SECONDS

    def _reap(self) -> None:
        for pid, rank in list(self.running.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if not ended:
                continue
            del self.running[pid]
            code = os.waitstatus_to_exitcode(status)
            if code and not self.has_failed:
                self.has_failed = True
                with contextlib.suppress(OSError):
                    print(f"rank {rank} ended with {_describe_exit(code)}", flush=True)

    def _send(self, number: signal.Signals) -> None:
        for pid in self.running:
            os.kill(pid, number)


def _next_signal(deadline: float | None) -> int | None:
    """Wait for the next signal and return it, or None after the deadline."""
    if deadline is None:
        return signal.sigwait(_WAITED_SIGNALS)
    found = signal.sigtimedwait(_WAITED_SIGNALS, max(deadline - time.monotonic(), 0))
    return found.si_signo if found else None


def _describe_exit(code: int) -> str:
    return f"exit code {code}" if code > 0 else signal.Signals(-code).name


def _start_store(num_ranks: int) -> tuple[int, dict[str, str]]:
    """Serve the store in its own fork, because it has threads.

    Returns:
        Process id of the fork, and environment variables of all ranks.
    """
    with socket.socket() as listener:
        listener.bind((_HOST, 0))
        listener.listen(num_ranks)
        port = listener.getsockname()[1]
        pid = _fork(lambda: _serve_store(listener.detach(), port))
    return pid, {
        "WORLD_SIZE": str(num_ranks),
        "LOCAL_WORLD_SIZE": str(num_ranks),
        "MASTER_ADDR": _HOST,
        "MASTER_PORT": str(port),
        # Rank 0 connects to this store instead of serving one.
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }


def _serve_store(listener: int, port: int) -> NoReturn:
    store = TCPStore(_HOST, port, is_master=True, wait_for_workers=False, master_listen_fd=listener)
    while store:
        signal.pause()
    raise AssertionError("only SIGKILL ends it")


def _fork(work: Callable[[], int]) -> int:
    """Run `work` with unblocked signals in a fork that is killed with this process."""

    def child() -> int:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _WAITED_SIGNALS)
        return work()

    return fork(child, signal.SIGKILL)
