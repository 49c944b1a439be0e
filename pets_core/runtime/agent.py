"""The agent: the process that starts the ranks of each stage on one machine.

A fork server (`pets_core.runtime.fork_server`) calls `run_stage` in a child, the launcher of one
stage. A job has the arguments REQUEST.json and MACHINE. The other machines connect to machine 0.
The launcher forks the ranks; with several machines, torch elastic starts them as new processes.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig as ElasticConfig
from torch.distributed.launcher.api import elastic_launch

from pets_core.config.launch import LaunchConfig
from pets_core.runtime import worker
from pets_core.runtime.failures import RankFailure, to_failure, write_failure
from pets_core.runtime.request import Request, parse_request
from pets_core.runtime.signals import SHUTDOWN_SECONDS, fork
from pets_core.runtime.stage_table import STAGES
from pets_core.runtime.supervisor import supervise_ranks

__all__ = ["run_stage"]

_FORKS = sys.platform == "linux"
_LAUNCHER = "launcher"
"""Name of the failure file of the process that starts the ranks."""


def run_stage(arguments: Sequence[str]) -> int:
    """Start the ranks of a stage and wait for them.

    An exception in this process is recorded as a failure of the launcher.

    Args:
        arguments: Path of the request, number of this machine.

    Returns:
        Exit code of the launcher.
    """
    path = Path(arguments[0])
    try:
        return _run_ranks(path, machine=int(arguments[1]))
    except Exception as error:  # noqa: BLE001 - recorded; the caller raises it
        write_failure(to_failure(error, rank=None), path.parent, _LAUNCHER)
        return 1


def _run_ranks(path: Path, machine: int) -> int:
    request = parse_request(path.read_text(encoding="utf-8"))
    num_ranks = _count_ranks(request)
    has_one_machine = request.config.launch.num_machines == 1 or STAGES[request.stage].is_local
    if has_one_machine and _FORKS:
        return supervise_ranks(num_ranks, lambda: _work(request, path, num_ranks))
    if has_one_machine and num_ranks == 1:
        return _work(request, path, num_ranks)
    return _launch_elastic(request, path, machine, num_ranks)


def _count_ranks(request: Request) -> int:
    wanted = request.config.launch.num_processes
    if STAGES[request.stage].is_local:
        return 1
    if wanted != "auto":
        return wanted
    return max(_count_gpus() if _FORKS else torch.cuda.device_count(), 1)


def _count_gpus() -> int:
    """Count GPUs in a fork: without NVML, counting initialises CUDA, which cannot be forked."""
    read, write = os.pipe()

    def count() -> int:
        os.write(write, str(torch.cuda.device_count()).encode())
        return 0

    pid = fork(count, signal.SIGKILL)
    os.close(write)
    with os.fdopen(read) as file:
        counted = file.read()
    os.waitpid(pid, 0)
    if not counted:
        raise RuntimeError("cannot count the GPUs: set launch.num_processes")
    return int(counted)


def _work(request: Request, path: Path, num_ranks: int) -> int:
    if num_threads := _threads(request.config.launch, num_ranks):
        os.environ["OMP_NUM_THREADS"] = str(num_threads)
        # OpenMP read the variable before this process was forked.
        torch.set_num_threads(num_threads)
    return worker.work(path)


def _threads(config: LaunchConfig, num_ranks: int) -> int:
    """Return the threads of each rank, which share the cores; 0 for the default."""
    if config.num_threads or num_ranks == 1 or "OMP_NUM_THREADS" in os.environ:
        return config.num_threads
    return max((os.cpu_count() or 1) // num_ranks, 1)


def _launch_elastic(request: Request, path: Path, machine: int, num_ranks: int) -> int:
    config = request.config.launch
    if num_threads := _threads(config, num_ranks):
        os.environ["OMP_NUM_THREADS"] = str(num_threads)
    elastic = ElasticConfig(
        min_nodes=config.num_machines,
        max_nodes=config.num_machines,
        nproc_per_node=num_ranks,
        max_restarts=0,
        shutdown_timeout=SHUTDOWN_SECONDS,
        **_rendezvous(request, machine),
    )
    try:
        elastic_launch(elastic, sys.executable)("-m", "pets_core.runtime.worker", str(path))
    except ChildFailedError as error:
        print(error)
        return 1
    except torch.distributed.DistError as error:
        # With one machine there is no other machine to wait for.
        if config.num_machines == 1:
            raise
        message = f"{_join_timeout_message(config, machine)} ({error})"
        write_failure(RankFailure(message=message, kind="alone"), path.parent, _LAUNCHER)
        return 1
    return 0


def _rendezvous(request: Request, machine: int) -> dict[str, Any]:
    """Return the rendezvous settings of torch elastic; machine 0 has rank 0.

    The run id is a hash of the request, so machines with different requests cannot join one run.
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


def _join_timeout_message(config: LaunchConfig, machine: int) -> str:
    remedy = "run `pets join` on the others" if machine == 0 else "check that machine 0 is running"
    return (
        f"launch.num_machines = {config.num_machines}: not all machines joined "
        f"launch.rdzv_endpoint = {config.rdzv_endpoint} within launch.join_timeout_seconds = "
        f"{config.join_timeout_seconds}; {remedy}"
    )
