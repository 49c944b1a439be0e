"""A machine that lends its ranks to the runs of another."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pets_core import storage
from pets_core.config import PipelineConfig
from pets_core.errors import PetsError
from pets_core.launch import Ears, WorkerError, WorkRequest, announcements, run_ranks
from pets_core.progress import ignore_progress

__all__ = ["join"]

_POLL_SECONDS = 1.0


def join(
    config: PipelineConfig,
    machine: int,
    *,
    idle_seconds: float,
    tell: Callable[[str], None],
) -> None:
    """Take part in one stage after the other of the runs that machine 0 starts.

    A stage that fails is left to machine 0, which tries it again; this machine waits for that.

    Args:
        config: Store and endpoint; the rest comes with each request.
        machine: Number of this machine, from 1.
        idle_seconds: End when nothing is asked for so long.
        tell: Given what the ranks print, and what becomes of each stage.

    Raises:
        PetsError: The settings name no endpoint, or no such machine.
    """
    if config.launch.rdzv_endpoint is None:
        raise PetsError("pets join needs launch.rdzv_endpoint: host:port of the first machine")
    if not 0 < machine < config.launch.num_machines:
        raise PetsError(
            f"--machine = {machine}: with launch.num_machines = {config.launch.num_machines} the "
            f"others are numbered from 1 to {config.launch.num_machines - 1}"
        )
    folder, done = announcements(config), ""
    last = time.monotonic()
    while time.monotonic() - last < idle_seconds:
        newest = max(storage.list_folder(folder), default="")
        if newest <= done:
            time.sleep(_POLL_SECONDS)
            continue
        done = newest
        _take_part(storage.join(folder, newest), machine, config, tell)
        last = time.monotonic()


def _take_part(url: str, machine: int, config: PipelineConfig, tell: Callable[[str], None]) -> None:
    try:
        asked = WorkRequest.model_validate_json(storage.read_bytes(url))
        # Store and cache are where this machine has them.
        own = {"store": config.store, "cache_dir": config.cache_dir}
        request = asked.model_copy(update={"config": asked.config.model_copy(update=own)})
        tell(f"{request.stage} begins")
        ears = Ears(on_progress=ignore_progress, on_line=tell, on_warning=tell)
        with tempfile.TemporaryDirectory(prefix="pets-") as name:
            run_ranks(request, Path(name), ears, machine)
        tell(f"{request.stage} is done")
    except (PetsError, WorkerError) as error:
        tell(f"failed: {error}")
