"""`pets ui`: open a run in the Prefect UI, starting a local server if necessary."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
import webbrowser
from uuid import UUID

from pets_core.errors import PetsError

__all__ = ["add_arguments", "open_ui", "run_command"]

_START_SECONDS = 120


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `pets ui` to its parser."""
    parser.add_argument(
        "run",
        metavar="RUN",
        nargs="?",
        help="flow run id; of a run in the store also its name, the start of its id, or latest "
        "(default: all runs)",
    )
    parser.add_argument("--port", type=int, default=4200, help="port of the server (default: 4200)")
    parser.add_argument(
        "--no-browser", action="store_true", help="print the URL without opening a browser"
    )


def run_command(arguments: argparse.Namespace) -> None:
    """Open the page of a run, or of all runs.

    Raises:
        PetsError: The id is invalid, PREFECT_HOME cannot be written, or the server did not start.
    """
    open_ui(arguments.run, arguments.port, browser=not arguments.no_browser)


def open_ui(run_id: str | None, port: int, *, browser: bool) -> None:
    """Open the page of a flow run. If no API is configured, serve the local database.

    Blocks until Ctrl-C if it starts a server.

    Args:
        run_id: Flow run to open; None opens the list of runs.
        port: Port of the local server, started or already running.
        browser: Whether to open a web browser; the URL is always printed.

    Raises:
        PetsError: The id is invalid, PREFECT_HOME cannot be written, or the server did not start.
    """
    from prefect.settings import get_current_settings

    from pets.cli.writable import check_database

    if run_id is not None:
        run_id = _flow_run_id(run_id)
    # Pages of UI V1 open a run on its logs; V2 can open it on its artifacts.
    page = f"/v2/runs/flow-run/{run_id}?tab=Artifacts" if run_id else "/v2/runs"
    configured = get_current_settings().api.url
    root = configured.removesuffix("/api") if configured else f"http://127.0.0.1:{port}"
    if configured or _is_serving(root):
        _show(root + page, browser)
        return
    check_database()
    command = [sys.executable, "-m", "prefect", "server", "start"]
    with subprocess.Popen(  # noqa: S603 - our own interpreter with fixed arguments
        [*command, "--host", "127.0.0.1", "--port", str(port)],
        # By default the UI queries port 4200, regardless of the port that serves it.
        env=os.environ | {"PREFECT_SERVER_UI_API_URL": f"{root}/api"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as server:
        try:
            deadline = time.monotonic() + _START_SECONDS
            while not _is_serving(root):
                if server.poll() is not None or time.monotonic() > deadline:
                    raise PetsError(
                        f"the Prefect server did not start on port {port}, which may be in use. "
                        "Set another --port"
                    )
                time.sleep(0.5)
            _show(root + page, browser)
            print("Press Ctrl-C to stop the server.", flush=True)
            server.wait()
        finally:
            server.terminate()
            server.wait()


def _flow_run_id(run: str) -> str:
    """Return the flow run id of a run, given by id, a start of it, name or `latest`."""
    try:
        return str(UUID(run))
    except ValueError:
        from pets.store import resolve_store
        from pets_core.runtime.run_list import find_run_folder

        return find_run_folder(resolve_store(None), run).rsplit("/", 1)[1]


def _show(url: str, browser: bool) -> None:
    print(url, flush=True)
    if browser:
        webbrowser.open(url)


def _is_serving(root: str) -> bool:
    try:
        with urllib.request.urlopen(f"{root}/api/health", timeout=2) as reply:  # noqa: S310
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False
