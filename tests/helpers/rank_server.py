"""Jobs of a fork server: ranks that perform the action in their arguments."""

import os
import signal
from collections.abc import Sequence
from datetime import timedelta

from torch.distributed import TCPStore

from pets_core.runtime import supervisor

__all__: list[str] = []


def write_line(*words: object) -> None:
    # A single write, because the ranks share a pipe.
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def meet(number: int, others: list[int]) -> None:
    """Wait at the store for other ranks."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=30))
    store.set(str(number), "here")
    store.wait([str(other) for other in others])


def handle_sigterm(*_: object) -> None:
    write_line("rank", os.environ["RANK"], "received SIGTERM")


def rank(action: str) -> int:
    number = int(os.environ.get("RANK", "-1"))
    ranks = list(range(int(os.environ.get("WORLD_SIZE", "0"))))
    if action == "meet":
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
        write_line(*(os.environ.get(name) for name in names))
        if ranks:
            meet(number, ranks)
        return 0

    def end(*_: object) -> None:
        handle_sigterm()
        os._exit(1)

    # Python runs a handler between bytecodes: a signal that arrives just before `time.sleep` is
    # handled after it. The byte that it writes ends a read.
    signals, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    signal.set_wakeup_fd(wakeup)
    signal.signal(signal.SIGTERM, handle_sigterm if action == "stubborn" else end)
    if action in ("fail", "raise", "die"):
        meet(number, ranks)
        if number == 1:
            if action == "raise":
                raise ValueError("a rank failed")
            if action == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            return 3
    else:
        write_line("rank", number, os.getpid())
    while True:
        os.read(signals, 1)


def run(arguments: Sequence[str]) -> int:
    num_ranks, action = arguments
    if action == "stubborn":
        supervisor.SHUTDOWN_SECONDS = 3
    return supervisor.supervise_ranks(int(num_ranks), lambda: rank(action))
