"""Join the runs of machine 0 with the ranks of this machine (`pets join`)."""

from __future__ import annotations

import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pets_core import storage
from pets_core.config.pipeline import PipelineConfig
from pets_core.errors import PetsError
from pets_core.progress import ignore_progress
from pets_core.runtime.failures import to_exception, write_failure
from pets_core.runtime.launcher import OutputCallbacks, requests_folder, run_ranks
from pets_core.runtime.request import REQUEST_FILE, parse_request

__all__ = ["join"]

_POLL_SECONDS = 1.0
_CONNECT_SECONDS = 5.0


def join(
    config: PipelineConfig,
    machine: int,
    *,
    idle_seconds: float,
    log: Callable[[str], None],
) -> None:
    """Run this machine's ranks in every stage that machine 0 requests.

    Machine 0 retries a failed stage; this machine then receives a new request. A request is
    ignored until machine 0 listens at the endpoint, since a killed run may have left it.

    Args:
        config: Store and endpoint; the other settings come with each request.
        machine: Number of this machine, from 1.
        idle_seconds: Return after this time without a request.
        log: Called with the ranks' output and the state of each stage.

    Raises:
        PetsError: The endpoint is not set, or the machine number is out of range.
    """
    endpoint = config.launch.rdzv_endpoint
    if endpoint is None:
        raise PetsError("pets join needs launch.rdzv_endpoint: set it to host:port of machine 0")
    if not 0 < machine < config.launch.num_machines:
        raise PetsError(
            f"--machine = {machine}: must be from 1 to {config.launch.num_machines - 1} with "
            f"launch.num_machines = {config.launch.num_machines}"
        )
    folder, seen, awaited, last = requests_folder(config), "", "", time.monotonic()
    while time.monotonic() - last < idle_seconds:
        newest = _newest_request(folder, log)
        if newest in ("", seen):
            time.sleep(_POLL_SECONDS)
            continue
        if not _is_listening(endpoint):
            if newest != awaited:
                log(f"waiting for machine 0 to listen at launch.rdzv_endpoint = {endpoint}")
            awaited = newest
            time.sleep(_POLL_SECONDS)
            continue
        # Before machine 0 listens, it replaces the request that a killed run has left.
        if newest != _newest_request(folder, log):
            continue
        seen = newest
        _run_stage(storage.join(folder, newest), machine, config, log)
        last = time.monotonic()


def _is_listening(endpoint: str) -> bool:
    """Return whether a server accepts connections at the endpoint."""
    host, _, port = endpoint.rpartition(":")
    try:
        socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def _newest_request(folder: str, log: Callable[[str], None]) -> str:
    """Return the name of the newest request, or an empty string if there is none."""
    try:
        names = [
            name
            for name in storage.list_folder(folder)
            if storage.exists(storage.join(folder, name, REQUEST_FILE))
        ]
    except (OSError, PetsError) as error:
        log(f"cannot read the store, retrying: {error}")
        return ""
    return max(names, default="")


def _run_stage(url: str, machine: int, config: PipelineConfig, log: Callable[[str], None]) -> None:
    """Run this machine's ranks of one stage and write their failures for machine 0."""
    try:
        request = parse_request(storage.read_bytes(storage.join(url, REQUEST_FILE)))
        # This machine has its own paths of store and cache.
        own = {"store": config.store, "cache_dir": config.cache_dir}
        request = request.model_copy(update={"config": request.config.model_copy(update=own)})
        log(f"{request.stage} started")
        callbacks = OutputCallbacks(on_progress=ignore_progress, on_line=log, on_warning=log)
        with tempfile.TemporaryDirectory(prefix="pets-") as name:
            failures = run_ranks(request, Path(name), callbacks, machine)
        for number, failure in enumerate(failures):
            write_failure(failure, url, f"machine-{machine}-{number}")
        state = f"failed: {to_exception(failures)}" if failures else "completed"
        log(f"{request.stage} {state}")
    except (OSError, PetsError) as error:
        log(f"failed: {error}")
