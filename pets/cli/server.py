"""Check the configured Prefect server, or start a temporary one."""

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
from pets_core.runtime.fork_server import stop_process

__all__ = [
    "answers",
    "check_server",
    "explain_server_errors",
    "start_temporary_server",
    "wait_until_ready",
]

_UNAUTHORIZED = (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN)
_START_SECONDS = 120.0
_ANSWER_SECONDS = 2.0
_POLL_SECONDS = 0.05
_STOP_SECONDS = 5.0


def check_server(*, required: bool) -> bool:
    """Connect to the configured Prefect server before any work starts.

    Args:
        required: Whether to raise if the server does not answer.

    Returns:
        Whether the command needs a temporary server: none is configured, or it does not answer.

    Raises:
        PetsError: The server does not answer, rejects the credentials or has another major version.
    """
    settings = get_current_settings()
    url = settings.api.url
    if url is None:
        return settings.server.ephemeral.enabled
    try:
        with explain_server_errors(), get_client(sync_client=True) as client:
            client.raise_for_api_version_mismatch()
    except RuntimeError as error:
        if required:
            raise PetsError(
                f"PREFECT_API_URL = {url}: {error}. Start the server, correct the URL, or unset it "
                "to use a temporary server"
            ) from error
        print(f"warning: {error}\n         Results are not published there.", file=sys.stderr)
        return True
    return False


def start_temporary_server() -> Callable[[], None]:
    """Start a Prefect server for this process, with the database of PREFECT_HOME.

    An exit handler stops the server after Prefect has flushed its logs.

    Returns:
        Function that waits until the server answers. It raises PetsError if it does not start.
    """
    # The server inherits the bound socket, so that no other process can take the port.
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port, descriptor = listener.getsockname()[1], listener.fileno()
        process = subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-m", "pets.cli.temporary_server", str(descriptor), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            pass_fds=[descriptor],
            # Ctrl-C goes to the terminal's foreground group only.
            process_group=0,
        )
    atexit.register(stop_process, process, _STOP_SECONDS)
    url = f"http://127.0.0.1:{port}/api"
    os.environ["PREFECT_API_URL"] = url
    refresh_global_settings_context()
    logging.getLogger("prefect.flow_runs").addFilter(_has_no_ui_link)
    remedy = "See its output above, or set PREFECT_API_URL to a running server"
    return lambda: wait_until_ready(process, url, remedy)


def _has_no_ui_link(record: logging.LogRecord) -> bool:
    """Drop Prefect's "View at URL" lines: a temporary server has no UI."""
    return not record.getMessage().startswith("View at ")


def answers(url: str, client: httpx.Client | None = None) -> bool:
    """Return whether a Prefect server answers at the URL of an API."""
    get = client.get if client else httpx.get
    try:
        return get(f"{url}/health", timeout=_ANSWER_SECONDS).is_success
    except httpx.TransportError:
        return False


def wait_until_ready(process: subprocess.Popen[bytes], url: str, remedy: str) -> None:
    """Wait until a Prefect server that was started answers.

    Args:
        process: Process of the server.
        url: URL of its API.
        remedy: What to do if the server does not start.

    Raises:
        PetsError: The server exited, or did not answer in time.
    """
    # The loop ends early if the server exits. A busy machine may need long.
    timeout = max(_START_SECONDS, get_current_settings().server.ephemeral.startup_timeout_seconds)
    deadline = time.monotonic() + timeout
    # Creating a client takes 20 ms.
    with httpx.Client() as client:
        while process.poll() is None and time.monotonic() < deadline:
            if answers(url, client):
                return
            time.sleep(_POLL_SECONDS)
    code = process.poll()
    reason = f"exit code {code}" if code is not None else f"no answer within {timeout:.0f} s"
    raise PetsError(f"the Prefect server of this command did not start ({reason}). {remedy}")


@contextmanager
def explain_server_errors() -> Iterator[None]:
    """Convert HTTP errors of the configured server into a `PetsError` with a remedy.

    Raises:
        PetsError: The server rejected the credentials, failed on a request or was unreachable.
    """
    url = get_current_settings().api.url
    try:
        yield
    except httpx.HTTPStatusError as error:
        code = error.response.status_code
        if code in _UNAUTHORIZED:
            raise PetsError(
                f"PREFECT_API_URL = {url}: the server rejects the credentials (HTTP {code}). Set "
                "PREFECT_API_AUTH_STRING to the server's PREFECT_SERVER_API_AUTH_STRING"
            ) from error
        raise PetsError(
            f"PREFECT_API_URL = {url}: the server failed on a request (HTTP {code}). See its log; "
            f"its database may be full or unreachable: {error}"
        ) from error
    except httpx.TransportError as error:
        raise PetsError(
            f"PREFECT_API_URL = {url}: no answer ({error}). Start the server or correct the URL"
        ) from error
