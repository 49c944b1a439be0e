"""Opens a run in the Prefect UI, starting a server on the local runs where none answers."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
import webbrowser
from uuid import UUID

from prefect.settings import get_current_settings

from pets.cli.writable import check_database
from pets_core.errors import PetsError

__all__ = ["open_ui"]

_START_SECONDS = 120


def open_ui(run_id: str | None, port: int, *, browser: bool) -> None:
    """Open the page of a flow run; where no API is configured, serve the local database.

    Blocks while a server it started is running, until Ctrl-C.

    Args:
        run_id: Flow run to open; None opens the list.
        port: Of the server that is started, or is running already.
        browser: Whether to open a web browser; the address is printed either way.

    Raises:
        PetsError: That is no id, PREFECT_HOME cannot be written, or the server did not start.
    """
    if run_id is not None:
        try:
            run_id = str(UUID(run_id))
        except ValueError:
            raise PetsError(
                f"{run_id}: no id of a flow run, which has 32 hexadecimal digits; `pets models "
                "list` shows those of evaluated runs"
            ) from None
    # The first page (V1) opens a run on its logs; this one opens it on its artifacts.
    page = f"/v2/runs/flow-run/{run_id}?tab=Artifacts" if run_id else "/v2/runs"
    configured = get_current_settings().api.url
    root = configured.removesuffix("/api") if configured else f"http://127.0.0.1:{port}"
    if configured or _answers(root):
        _show(root + page, browser)
        return
    check_database()
    command = [sys.executable, "-m", "prefect", "server", "start"]
    with subprocess.Popen(  # noqa: S603 - our own interpreter with fixed arguments
        [*command, "--host", "127.0.0.1", "--port", str(port)],
        # Without it the page asks port 4200, whatever port it was served from.
        env=os.environ | {"PREFECT_SERVER_UI_API_URL": f"{root}/api"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as server:
        try:
            deadline = time.monotonic() + _START_SECONDS
            while not _answers(root):
                if server.poll() is not None or time.monotonic() > deadline:
                    raise PetsError(
                        f"the Prefect server did not start on port {port}, which may be taken: try "
                        "another --port"
                    )
                time.sleep(0.5)
            _show(root + page, browser)
            print("Ctrl-C stops the server.", flush=True)
            server.wait()
        finally:
            server.terminate()
            server.wait()


def _show(url: str, browser: bool) -> None:
    print(url, flush=True)
    if browser:
        webbrowser.open(url)


def _answers(root: str) -> bool:
    try:
        with urllib.request.urlopen(f"{root}/api/health", timeout=2) as reply:  # noqa: S310
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False
