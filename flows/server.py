"""The Prefect server of a command: the configured one, asked first, or a temporary one."""

from __future__ import annotations

import atexit
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
from prefect.client.orchestration import get_client
from prefect.context import refresh_global_settings_context
from prefect.settings import get_current_settings

from pets_core.errors import PetsError

__all__ = ["check_server", "start_temporary_server", "telling_of_the_server"]

_REFUSED = (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN)
_POLL_SECONDS = 0.05
_STOP_SECONDS = 5.0


def check_server(*, required: bool) -> bool:
    """Connect to the configured Prefect server before any work starts.

    Args:
        required: Whether to refuse work where it does not answer.

    Returns:
        Whether the command needs a temporary server: none is configured, or it does not answer.

    Raises:
        PetsError: It does not answer, refuses the credentials, or is of another major version.
    """
    settings = get_current_settings()
    url = settings.api.url
    if url is None:
        return settings.server.ephemeral.enabled
    try:
        with telling_of_the_server(), get_client(sync_client=True) as client:
            client.raise_for_api_version_mismatch()
    except RuntimeError as error:
        if required:
            raise PetsError(
                f"PREFECT_API_URL = {url}: {error}. Start the server, mend the address, or "
                "unset it: a temporary server then serves the run"
            ) from error
        print(f"warning: {error}\n         Nothing is published there.", file=sys.stderr)
        return True
    return False


def start_temporary_server() -> Callable[[], None]:
    """Start a Prefect server for this process, on the database of PREFECT_HOME.

    It is stopped when this process exits, after Prefect has sent what it still has to.

    Returns:
        Waits until the server answers; raises PetsError where it does not start.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(  # noqa: S603 - our own module
        [sys.executable, "-m", "flows.temporary_server", str(port), str(os.getpid())],
        stdin=subprocess.DEVNULL,
        # Not of the terminal's foreground group, which Ctrl-C goes to.
        process_group=0,
    )
    atexit.register(_stop, process)
    url = f"http://127.0.0.1:{port}/api"
    os.environ["PREFECT_API_URL"] = url
    refresh_global_settings_context()
    logging.getLogger("prefect.flow_runs").addFilter(_names_no_page)
    return lambda: _wait_until_ready(process, url)


def _names_no_page(record: logging.LogRecord) -> bool:
    """Leave out the address of a page: a temporary server has none."""
    return not record.getMessage().startswith("View at ")


def _wait_until_ready(process: subprocess.Popen[bytes], url: str) -> None:
    patience = get_current_settings().server.ephemeral.startup_timeout_seconds
    deadline = time.monotonic() + patience
    with httpx.Client() as client:
        while process.poll() is None and time.monotonic() < deadline:
            try:
                if client.get(f"{url}/health").is_success:
                    return
            except httpx.TransportError:
                time.sleep(_POLL_SECONDS)
    code = process.poll()
    reason = f"it ended with exit code {code}" if code is not None else f"not in {patience} s"
    raise PetsError(
        f"the temporary Prefect server did not start ({reason}): see what it printed above, and "
        "whether PREFECT_HOME (~/.prefect) can be written; or set PREFECT_API_URL to a server"
    )


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def telling_of_the_server() -> Iterator[None]:
    """Say what is wrong with the configured server, or with what it was shown.

    Raises:
        PetsError: It refused the credentials, could not do what was asked, or was not reached.
    """
    url = get_current_settings().api.url
    try:
        yield
    except httpx.HTTPStatusError as error:
        code = error.response.status_code
        if code in _REFUSED:
            raise PetsError(
                f"PREFECT_API_URL = {url}: the server refuses the credentials (HTTP {code}): set "
                "PREFECT_API_AUTH_STRING to what PREFECT_SERVER_API_AUTH_STRING is there"
            ) from error
        raise PetsError(
            f"PREFECT_API_URL = {url}: the server could not do what was asked (HTTP {code}); its "
            f"log says why (is its database full or away?): {error}"
        ) from error
    except httpx.TransportError as error:
        raise PetsError(
            f"PREFECT_API_URL = {url}: no answer ({error}). Start the server, or mend the address"
        ) from error
