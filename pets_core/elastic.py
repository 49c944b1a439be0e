"""The launcher of worker ranks: torch elastic, made to die with its parent.

`python -m pets_core.elastic REQUEST.json PARENT_PID MACHINE` starts the ranks that a request asks
for on one machine; machine 0 is the one that the others reach. A rank that is the only one works in
the launcher's own process.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

from pets_core.config import LaunchConfig
from pets_core.failures import RankFailure, write_failure
from pets_core.launch import Request, read_request

__all__ = ["die_with_parent", "leave", "main"]

_PR_SET_PDEATHSIG = 1
_SHUTDOWN_SECONDS = 20
"""Between SIGTERM, on which a checkpoint is written, and SIGKILL; less than whoever started this
process waits."""


def die_with_parent(with_signal: signal.Signals) -> None:
    """Ask Linux to send this process a signal when its parent ends; elsewhere do nothing.

    torch starts each rank in a session of its own, so that killing a process group misses them.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, with_signal)


def leave(code: int) -> NoReturn:
    """End this process at once; taking torch down in order takes Python more than a second."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main() -> None:
    """Start the ranks and wait for them; the exit code is theirs."""
    die_with_parent(signal.SIGTERM)
    if os.getppid() != int(sys.argv[2]):
        sys.exit("the process that started this launcher has ended")
    # torch is imported here, and not above, because importing it takes longer than the parent
    # may live: the request to be told comes first.
    import torch

    path, machine = Path(sys.argv[1]), int(sys.argv[3])
    request = read_request(path.read_text(encoding="utf-8"))
    config = request.config.launch
    wanted = config.num_processes
    count = max(torch.cuda.device_count(), 1) if wanted == "auto" else wanted
    alone = count == config.num_machines == 1
    if alone or request.stage == "check":
        # One rank needs nobody to meet the others.
        from pets_core import worker

        # Nobody else ends a rank that is slow to end, or hangs.
        threading.Thread(target=_end_after, args=(int(sys.argv[2]),), daemon=True).start()
        leave(worker.work(path))
    _start_ranks(request, path, machine, count)
    leave(0)


def _end_after(parent: int, poll_seconds: float = 1.0) -> None:
    """End this process some seconds after its parent, though it be at work."""
    while os.getppid() == parent:
        time.sleep(poll_seconds)
    time.sleep(_SHUTDOWN_SECONDS)
    os._exit(1)


def _start_ranks(request: Request, path: Path, machine: int, count: int) -> None:
    import torch
    from torch.distributed.run import main as torchrun

    config = request.config.launch
    threads = max((os.cpu_count() or 1) // count, 1)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    options = [
        *_rendezvous(request, machine),
        f"--nproc-per-node={count}",
        f"--shutdown-timeout={_SHUTDOWN_SECONDS}",
    ]
    try:
        torchrun([*options, "-m", "pets_core.worker", str(path)])
    except torch.distributed.DistError as error:
        # The store of one machine alone is its own.
        if config.num_machines == 1:
            raise
        told = f"{_nobody_came(config, machine)} ({error})"
        write_failure(RankFailure(message=told, kind="alone"), path.parent, "launcher")
        sys.exit(1)


def _rendezvous(request: Request, machine: int) -> list[str]:
    """How the machines of a run find each other; the first has rank 0.

    Machines that were asked different things never meet, rather than train together.
    """
    config = request.config.launch
    asked = request.model_dump_json(exclude={"config": {"store", "cache_dir"}})
    if config.num_machines == 1:
        return ["--standalone"]
    return [
        f"--nnodes={config.num_machines}",
        f"--node-rank={machine}",
        "--rdzv-backend=static",
        f"--rdzv-id={hashlib.sha256(asked.encode()).hexdigest()[:24]}",
        f"--rdzv-endpoint={config.rdzv_endpoint}",
        f"--rdzv-conf=timeout={config.join_timeout_seconds}",
    ]


def _nobody_came(config: LaunchConfig, machine: int) -> str:
    remedy = "start pets join on the others" if machine == 0 else "is the first machine there?"
    return (
        f"launch.num_machines = {config.num_machines}: not all of them met at "
        f"launch.rdzv_endpoint = {config.rdzv_endpoint} within launch.join_timeout_seconds = "
        f"{config.join_timeout_seconds}; {remedy}"
    )


if __name__ == "__main__":
    main()
