"""Starts the worker ranks of a stage, streams their progress, and leaves none behind."""

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
from pets_core.runtime.failures import RankFailure, read_failures, the_error
from pets_core.runtime.fork_server import Job, forked, prestart
from pets_core.runtime.request import PROGRESS_MARK, REQUEST, WARNING_MARK, Request
from pets_core.runtime.signals import stop_process
from pets_core.runtime.stage_table import STAGES

__all__ = [
    "Ears",
    "announced",
    "announcements",
    "launch",
    "prestart_ranks",
    "run_ranks",
    "worker_environment",
]

_LOGGER = logging.getLogger(__name__)
_AGENT = "pets_core.runtime.agent"
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

    Whatever ends this call (a result, an error, a cancelled run, Ctrl-C), every process it
    started has ended too: the launcher is told to stop, and dies with its parent.

    Args:
        request: The stage and its input.
        record: Type of the result.
        on_progress: Told of the ranks' progress, from another thread.
        on_line: Given every other line the ranks print, from another thread.
        on_warning: Given the ranks' warnings, from another thread.

    Raises:
        PetsError: A rank refused its input.
        WorkerError: A rank failed otherwise.
    """
    ears = Ears(on_progress, on_line, on_warning)
    with announced(request) as others, tempfile.TemporaryDirectory(prefix="pets-") as name:
        failures = run_ranks(request, Path(name), ears)
        if failures and others:
            failures = _with_those_of(others, failures)
        if failures:
            raise the_error(failures)
        return record.model_validate_json((Path(name) / "result.json").read_text(encoding="utf-8"))


@contextlib.contextmanager
def announced(request: Request) -> Iterator[str | None]:
    """Let the other machines, if there are any, see a request in the store until it is done.

    Yields:
        The folder where they leave their ranks' failures.
    """
    launch = request.config.launch
    if launch.num_machines == 1 or STAGES[request.stage].is_local:
        yield None
        return
    folder = announcements(request.config)
    # Of a run that was killed before it could take its own back.
    storage.remove(folder)
    url = storage.join(folder, f"{time.time_ns():020}")
    # A machine of an earlier version knows no setting that came since.
    asked = request.model_dump_json(exclude_defaults=True)
    storage.write_bytes(storage.join(url, REQUEST), asked.encode(), "TMPDIR")
    try:
        yield url
    finally:
        storage.remove(url)


def announcements(config: PipelineConfig | RatingsConfig) -> str:
    """The folder of the store where the machines that meet at an endpoint look for work."""
    endpoint = (config.launch.rdzv_endpoint or "").replace(":", "-")
    return storage.join(storage.absolute(config.store), "machines", endpoint)


def run_ranks(request: Request, folder: Path, ears: Ears, machine: int = 0) -> list[RankFailure]:
    """Run this machine's ranks to their end; those of machine 0 leave result.json in `folder`.

    Returns:
        What went wrong, the failure to blame first; nothing if all went well.
    """
    path = folder / REQUEST
    path.write_text(request.model_dump_json(), encoding="utf-8")
    try:
        with forked(_AGENT, worker_environment(), [str(path), str(machine)]) as job:
            tail = _watch(job, ears)
    except ConnectionError as error:
        return [RankFailure(message=f"the launcher did not start: {error}", kind="failed")]
    if job.returncode == 0:
        return []
    lines = "\n".join(tail)
    message = f"the worker ended with exit code {job.returncode}:\n{lines}"
    return read_failures(folder) or [RankFailure(message=message, kind="failed")]


def prestart_ranks() -> None:
    """Start the agent now, so that its imports run in parallel with this process's work."""
    prestart(_AGENT, worker_environment())


def _with_those_of(others: str, failures: list[RankFailure]) -> list[RankFailure]:
    """Wait a while for the cause, where this machine's ranks only know that others went away."""
    deadline = time.monotonic() + _TERMINATE_SECONDS
    while failures[0].kind == "cut off" and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        failures = sorted([*failures, *read_failures(others)], key=lambda f: f.blame)
    return failures


@dataclass(frozen=True)
class Ears:
    """Who is told of what the ranks print."""

    on_progress: OnProgress
    on_line: Callable[[str], None]
    on_warning: Callable[[str], None]


def _watch(job: Job, ears: Ears) -> deque[str]:
    """Pass on what a launcher prints until it ends, or end it; return its last lines."""
    tail: deque[str] = deque(maxlen=50)
    reader = threading.Thread(target=_read, args=(job.stdout, ears, tail), daemon=True)
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
            # Closing a file that another thread still reads would wait for that thread.
            job.stdout.close()
    return tail


def worker_environment() -> dict[str, str]:
    """The environment of the launcher and its ranks.

    glibc gives freed blocks of 32 MiB and more back to the system at once, so that each step of
    CPU training page-faults its activations in anew; told to keep them, in huge pages, training
    takes half the time (docs/performance.md). A variable the user has set is left alone. Prefect's
    own, its credentials among them, stay with the flow process.
    """
    defaults = {
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
        "MALLOC_TOP_PAD_": str(64 << 20),
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
        "PYTHONUNBUFFERED": "1",
        # Counting GPUs must not initialise CUDA, which does not survive a fork.
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
        # Operations that Apple's GPUs lack run on the CPU.
        "PYTORCH_ENABLE_MPS_FALLBACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    own = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    return defaults | own


def _read(stream: IO[str], ears: Ears, tail: deque[str]) -> None:
    """Drain the pipe to its end, come what may: a full one would block the ranks for ever."""
    for raw in stream:
        line = raw.rstrip()
        try:
            if line:
                _pass_on(line, ears, tail)
        except Exception:
            _LOGGER.exception("a line of the ranks could not be shown")


def _pass_on(line: str, ears: Ears, tail: deque[str]) -> None:
    if line.startswith(WARNING_MARK):
        ears.on_warning(line.removeprefix(WARNING_MARK))
        return
    if line.startswith(PROGRESS_MARK):
        # Two ranks may have written at once: then it is a line of text.
        with contextlib.suppress(ValidationError):
            progress = Progress.model_validate_json(line.removeprefix(PROGRESS_MARK))
            ears.on_progress(progress)
            return
    tail.append(line)
    ears.on_line(line)
