"""The agent: the process that starts the ranks of each stage on one machine.

`python -m pets_core.agent` is a fork server (`pets_core.fork_server`) whose children are the
launchers of one stage each. A job has the arguments REQUEST.json and MACHINE; machine 0 is the one
that the others reach. A rank that is the only one works in its launcher's own process; several are
forked from it by torch elastic.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig as ElasticConfig
from torch.distributed.launcher.api import elastic_launch

from pets_core import worker
from pets_core.config import LaunchConfig
from pets_core.failures import RankFailure, write_failure
from pets_core.fork_server import serve
from pets_core.launch import Request, read_request
from pets_core.signals import die_with_parent, hard_exit

__all__ = ["SHUTDOWN_SECONDS", "run_stage"]

SHUTDOWN_SECONDS = 20
"""Between SIGTERM, on which a checkpoint is written, and SIGKILL; less than whoever started this
process waits."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""Torch elastic handles these in the launcher, and its forks inherit that."""


def run_stage(arguments: Sequence[str]) -> int:
    """Start the ranks of a stage and wait for them.

    Args:
        arguments: Path of the request, number of this machine.

    Returns:
        Exit code of the launcher.
    """
    # Nobody else ends a launcher that is slow to end, or hangs.
    threading.Thread(target=_end_after, args=(os.getppid(),), daemon=True).start()
    path = Path(arguments[0])
    machine = int(arguments[1])
    request = read_request(path.read_text(encoding="utf-8"))
    config = request.config.launch
    wanted = config.num_processes
    num_ranks = max(torch.cuda.device_count(), 1) if wanted == "auto" else wanted
    _limit_threads(config, num_ranks)
    if num_ranks == config.num_machines == 1 or request.stage == "check":
        # One rank needs nobody to meet the others.
        return worker.work(path)
    return _start_ranks(request, path, machine, num_ranks)


def _end_after(parent: int, poll_seconds: float = 1.0) -> None:
    """End this process some seconds after its parent, though it be at work."""
    while os.getppid() == parent:
        time.sleep(poll_seconds)
    time.sleep(SHUTDOWN_SECONDS)
    os._exit(1)


def _limit_threads(config: LaunchConfig, num_ranks: int) -> None:
    """Divide the cores among the ranks; OpenMP has read its variable before this process forked."""
    num_threads = config.num_threads
    if not num_threads and num_ranks > 1 and "OMP_NUM_THREADS" not in os.environ:
        num_threads = max((os.cpu_count() or 1) // num_ranks, 1)
    if num_threads:
        os.environ["OMP_NUM_THREADS"] = str(num_threads)
        torch.set_num_threads(num_threads)


def _start_ranks(request: Request, path: Path, machine: int, num_ranks: int) -> int:
    config = request.config.launch
    elastic = ElasticConfig(
        min_nodes=config.num_machines,
        max_nodes=config.num_machines,
        nproc_per_node=num_ranks,
        max_restarts=0,
        start_method="fork",
        shutdown_timeout=SHUTDOWN_SECONDS,
        **_rendezvous(request, machine),
    )
    try:
        if _may_fork():
            elastic_launch(elastic, _run_rank)(path)
        else:
            elastic_launch(elastic, sys.executable)("-m", "pets_core.worker", str(path))
    except ChildFailedError as error:
        print(error)
        return 1
    except torch.distributed.DistError as error:
        # The store of one machine alone is its own.
        if config.num_machines == 1:
            raise
        message = f"{_nobody_came(config, machine)} ({error})"
        write_failure(RankFailure(message=message, kind="alone"), path.parent, "launcher")
        return 1
    return 0


def _may_fork() -> bool:
    """Whether CUDA is untouched in this process: it does not survive a fork.

    torch counts GPUs by NVML, and where that is missing by initialising CUDA.
    """
    if not torch.cuda.is_available():
        return True
    try:
        return ctypes.CDLL("libnvidia-ml.so.1") is not None
    except OSError:
        return False


def _run_rank(path: Path) -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    die_with_parent(signal.SIGKILL)
    if code := worker.work(path):
        hard_exit(code)


def _rendezvous(request: Request, machine: int) -> dict[str, Any]:
    """How the machines of a run find each other; the first has rank 0.

    Machines that were given different requests never meet, rather than train together.
    """
    config = request.config.launch
    if config.num_machines == 1:
        return {
            "rdzv_backend": "c10d",
            "rdzv_endpoint": "localhost:0",
            "run_id": str(uuid.uuid4()),
        }
    shared = request.model_dump_json(exclude={"config": {"store", "cache_dir"}})
    return {
        "rdzv_backend": "static",
        "rdzv_endpoint": config.rdzv_endpoint,
        "rdzv_configs": {"rank": machine, "timeout": config.join_timeout_seconds},
        "run_id": hashlib.sha256(shared.encode()).hexdigest()[:24],
    }


def _nobody_came(config: LaunchConfig, machine: int) -> str:
    remedy = "start pets join on the others" if machine == 0 else "is the first machine there?"
    return (
        f"launch.num_machines = {config.num_machines}: not all of them met at "
        f"launch.rdzv_endpoint = {config.rdzv_endpoint} within launch.join_timeout_seconds = "
        f"{config.join_timeout_seconds}; {remedy}"
    )


if __name__ == "__main__":
    # Children share these pages for as long as nothing writes to them, as a collection would.
    gc.freeze()
    serve(run_stage)
