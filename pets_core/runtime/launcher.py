"""Launch the ranks of a stage, stream their output and stop all of them at the end."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

from pydantic import BaseModel, ValidationError

from pets_core import storage
from pets_core.config.pipeline import PipelineConfig
from pets_core.progress import OnProgress, Progress, ignore_progress
from pets_core.ratings.config import RatingsConfig
from pets_core.runtime.failures import RankFailure, read_failures, to_exception
from pets_core.runtime.fork_server import Job, forked, prestart, stop_process
from pets_core.runtime.request import PROGRESS_PREFIX, REQUEST_FILE, WARNING_PREFIX, Request
from pets_core.runtime.stage_table import STAGES

__all__ = [
    "OutputCallbacks",
    "launch",
    "prestart_ranks",
    "publish_request",
    "requests_folder",
    "run_ranks",
    "worker_environment",
]

_LOGGER = logging.getLogger(__name__)
_AGENT = "pets_core.runtime.agent:run_stage"
_POLL_SECONDS = 0.5
_TERMINATE_SECONDS = 30.0

Record = TypeVar("Record", bound=BaseModel)


def launch(
    request: Request,
    record: type[Record],
    *,
    on_progress: OnProgress = ignore_progress,
    on_line: Callable[[str], None] = lambda _: None,
    on_warning: Callable[[str], None] = lambda _: None,
) -> Record:
    """Run a stage in worker ranks and return the record that rank 0 wrote.

    When this call ends (with a result, an error, a cancelled run or Ctrl-C), every process it
    started has ended, too: the launcher receives SIGTERM, and is killed when its parent dies.

    Args:
        request: The stage and its input.
        record: Type of the result.
        on_progress: Called with the ranks' progress, from another thread.
        on_line: Called with every other line the ranks print, from another thread.
        on_warning: Called with the ranks' warnings, from another thread.

    Raises:
        PetsError: A rank refused its input.
        WorkerError: A rank failed for another reason.
    """
    callbacks = OutputCallbacks(on_progress, on_line, on_warning)
    with publish_request(request) as url, tempfile.TemporaryDirectory(prefix="pets-") as name:
        failures = run_ranks(request, Path(name), callbacks)
        if failures and url:
            failures = _wait_for_root_cause(url, failures)
        if failures:
            raise to_exception(failures)
        return record.model_validate_json((Path(name) / "result.json").read_text(encoding="utf-8"))


@contextlib.contextmanager
def publish_request(request: Request) -> Iterator[str | None]:
    """Write a request to the store for the other machines, and remove it at the end.

    Yields:
        Folder of the request, to which the other machines write their ranks' failures; None if the
        stage runs on this machine only.
    """
    launch = request.config.launch
    if launch.num_machines == 1 or STAGES[request.stage].is_local:
        yield None
        return
    folder = requests_folder(request.config)
    # A killed run may have left its request there.
    storage.remove(folder)
    url = storage.join(folder, f"{time.time_ns():020}")
    # Machines with an earlier version do not know settings added since.
    text = request.model_dump_json(exclude_defaults=True)
    storage.write_bytes(storage.join(url, REQUEST_FILE), text.encode(), "TMPDIR")
    try:
        yield url
    finally:
        storage.remove(url)


def requests_folder(config: PipelineConfig | RatingsConfig) -> str:
    """Return the folder of the store with the requests for the machines of one endpoint."""
    endpoint = (config.launch.rdzv_endpoint or "").replace(":", "-")
    return storage.join(storage.absolute(config.store), "machines", endpoint)


def run_ranks(
    request: Request, folder: Path, callbacks: OutputCallbacks, machine: int = 0
) -> list[RankFailure]:
    """Run this machine's ranks until they end; rank 0 writes result.json to `folder`.

    Returns:
        Failures, the most likely root cause first; empty on success.
    """
    path = folder / REQUEST_FILE
    path.write_text(request.model_dump_json(), encoding="utf-8")
    try:
        with forked(_AGENT, worker_environment(), [str(path), str(machine)]) as job:
            tail = _stream_output(job, callbacks)
    except ConnectionError as error:
        return [RankFailure(message=f"the launcher did not start: {error}", kind="failed")]
    if job.returncode == 0:
        return []
    lines = "\n".join(tail)
    message = f"the launcher ended with exit code {job.returncode}:\n{lines}"
    return read_failures(folder) or [RankFailure(message=message, kind="failed")]


def prestart_ranks() -> None:
    """Start the agent now, so that its imports run in parallel with this process's work."""
    prestart(_AGENT, worker_environment())


def _wait_for_root_cause(url: str, failures: list[RankFailure]) -> list[RankFailure]:
    """Wait for the failures of other machines if the ranks here only lost their connection."""
    deadline = time.monotonic() + _TERMINATE_SECONDS
    while failures[0].kind == "cut off" and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        failures = sorted([*failures, *read_failures(url)], key=lambda f: f.root_cause_key)
    return failures


@dataclass(frozen=True)
class OutputCallbacks:
    """Callbacks for rank output."""

    on_progress: OnProgress
    on_line: Callable[[str], None]
    on_warning: Callable[[str], None]


def _stream_output(job: Job, callbacks: OutputCallbacks) -> deque[str]:
    """Forward a launcher's output until it ends, or stop it on an error; return its last lines."""
    tail: deque[str] = deque(maxlen=50)
    reader = threading.Thread(target=_forward, args=(job.stdout, callbacks, tail), daemon=True)
    reader.start()
    try:
        job.wait()
    finally:
        stop_process(job, _TERMINATE_SECONDS)
        reader.join(timeout=_TERMINATE_SECONDS if job.is_orphan else _POLL_SECONDS * 4)
        if job.is_orphan and reader.is_alive():
            job.kill()
            reader.join(timeout=_POLL_SECONDS * 4)
        if not reader.is_alive():
            # Closing a file that another thread still reads waits for that thread.
            job.stdout.close()
    return tail


def worker_environment() -> dict[str, str]:
    """Return the environment variables of the launcher and its ranks.

    glibc returns freed blocks of 32 MiB and more to the system at once, so each step of CPU
    training page-faults its activations in again. Keeping them, in huge pages, halves the training
    time (docs/performance.md). Variables set by the user take precedence. Prefect's variables,
    which include credentials, are not passed on.
    """
    defaults = {
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
        "MALLOC_TOP_PAD_": str(64 << 20),
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
        "PYTHONUNBUFFERED": "1",
        # Counting GPUs must not initialise CUDA, which cannot be forked.
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
        # Operations that Apple's GPUs lack run on the CPU.
        "PYTORCH_ENABLE_MPS_FALLBACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    own = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    return defaults | own


def _forward(stream: IO[str], callbacks: OutputCallbacks, tail: deque[str]) -> None:
    """Read the pipe to its end, even if a callback fails: a full pipe blocks the ranks."""
    for raw in stream:
        line = raw.rstrip()
        try:
            if line:
                _dispatch(line, callbacks, tail)
        except Exception:
            _LOGGER.exception("Cannot show a line of the ranks' output")


def _dispatch(line: str, callbacks: OutputCallbacks, tail: deque[str]) -> None:
    if line.startswith(WARNING_PREFIX):
        callbacks.on_warning(line.removeprefix(WARNING_PREFIX))
        return
    if line.startswith(PROGRESS_PREFIX):
        # Lines of two ranks may be interleaved; such a line is forwarded as text.
        with contextlib.suppress(ValidationError):
            progress = Progress.model_validate_json(line.removeprefix(PROGRESS_PREFIX))
            callbacks.on_progress(progress)
            return
    tail.append(line)
    callbacks.on_line(line)
