"""A machine that lends its ranks to the runs of another."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pets_core import storage
from pets_core.config.pipeline import PipelineConfig
from pets_core.errors import PetsError
from pets_core.progress import ignore_progress
from pets_core.runtime.failures import the_error, write_failure
from pets_core.runtime.launcher import Ears, announcements, run_ranks
from pets_core.runtime.request import REQUEST, read_request

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
    folder, seen, last = announcements(config), "", time.monotonic()
    while time.monotonic() - last < idle_seconds:
        newest = _newest(folder, tell)
        if newest in ("", seen):
            time.sleep(_POLL_SECONDS)
            continue
        seen = newest
        _take_part(storage.join(folder, newest), machine, config, tell)
        last = time.monotonic()


def _newest(folder: str, tell: Callable[[str], None]) -> str:
    """Name of what was asked for last, empty where nothing is."""
    try:
        asked = [
            name
            for name in storage.list_folder(folder)
            if storage.exists(storage.join(folder, name, REQUEST))
        ]
    except (OSError, PetsError) as error:
        tell(f"the store cannot be read and is tried again: {error}")
        return ""
    return max(asked, default="")


def _take_part(url: str, machine: int, config: PipelineConfig, tell: Callable[[str], None]) -> None:
    """Run this machine's ranks of one stage; machine 0 hears of their failures."""
    try:
        asked = read_request(storage.read_bytes(storage.join(url, REQUEST)))
        # Store and cache are where this machine has them.
        own = {"store": config.store, "cache_dir": config.cache_dir}
        request = asked.model_copy(update={"config": asked.config.model_copy(update=own)})
        tell(f"{request.stage} begins")
        ears = Ears(on_progress=ignore_progress, on_line=tell, on_warning=tell)
        with tempfile.TemporaryDirectory(prefix="pets-") as name:
            failures = run_ranks(request, Path(name), ears, machine)
        for number, failure in enumerate(failures):
            write_failure(failure, url, f"machine-{machine}-{number}")
        tell(f"{request.stage} {'failed: ' + str(the_error(failures)) if failures else 'is done'}")
    except (OSError, PetsError) as error:
        tell(f"failed: {error}")
