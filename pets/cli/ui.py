"""`pets ui`: open a run in the Prefect UI, starting a local server if necessary."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import webbrowser
from uuid import UUID

from pets_core.errors import PetsError

__all__ = ["add_arguments", "run_command"]


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
    """Open the page of a run, or of all runs. If no API is configured, serve the local database.

    Blocks until Ctrl-C if it starts a server.

    Raises:
        PetsError: The id or the port is invalid, PREFECT_HOME cannot be written, or the server did
            not start.
    """
    if not 0 < arguments.port < 1 << 16:
        raise PetsError(f"--port = {arguments.port}: must be from 1 to 65535")
    from prefect.client.base import ServerType, determine_server_type
    from prefect.settings import get_current_settings

    from pets.cli.server import answers

    run_id = None if arguments.run is None else _flow_run_id(arguments.run)
    page = _page(run_id, is_cloud=determine_server_type() == ServerType.CLOUD)
    has_browser = not arguments.no_browser
    configured = get_current_settings().ui_url
    local = f"http://127.0.0.1:{arguments.port}"
    if configured or answers(f"{local}/api"):
        _show((configured or local).rstrip("/") + page, has_browser)
    else:
        _serve(arguments.port, local + page, has_browser)


def _page(run_id: str | None, *, is_cloud: bool) -> str:
    """Return the path of the page of a run, or of all runs."""
    if is_cloud:
        return f"/runs/flow-run/{run_id}" if run_id else "/runs"
    # Pages of UI V1 open a run on its logs; V2 can open it on its artifacts.
    return f"/v2/runs/flow-run/{run_id}?tab=Artifacts" if run_id else "/v2/runs"


def _serve(port: int, page: str, has_browser: bool) -> None:
    """Serve the local database until Ctrl-C, and open a page of it."""
    from pets.cli.server import wait_until_ready
    from pets.cli.writable import check_database

    check_database()
    api = f"http://127.0.0.1:{port}/api"
    command = [sys.executable, "-m", "prefect", "server", "start"]
    with subprocess.Popen(  # noqa: S603 - our own interpreter with fixed arguments
        [*command, "--host", "127.0.0.1", "--port", str(port)],
        # By default the UI queries port 4200, regardless of the port that serves it.
        env=os.environ | {"PREFECT_SERVER_UI_API_URL": api},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as server:
        try:
            wait_until_ready(server, api, f"Port {port} may be in use: set another --port")
            _show(page, has_browser)
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


def _show(url: str, has_browser: bool) -> None:
    print(url, flush=True)
    if has_browser:
        webbrowser.open(url)
