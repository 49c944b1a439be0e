"""Prefect's API without its pages, for one command: `python -m flows.temporary_server PORT PARENT`.

As Prefect's own temporary server, but that it needs no import of the server in the process that
starts it, does not hear a terminal's Ctrl-C, which would end it before the flow has told how it
ended, and ends with a parent that is killed.
"""

from __future__ import annotations

import os
import signal
import sys

from pets_core.signals import die_with_parent

__all__ = ["main"]

_SETTINGS = {
    "PREFECT_UI_ENABLED": "0",
    # As Prefect sets them for its own: no schedules, no late runs.
    "PREFECT__SERVER_EPHEMERAL": "1",
    "PREFECT__SERVER_FINAL": "1",
}


def main() -> None:
    """Serve until SIGTERM."""
    die_with_parent(signal.SIGTERM)
    port, parent = map(int, sys.argv[1:])
    if os.getppid() != parent:
        sys.exit("the process that started this server has ended")
    os.environ |= _SETTINGS
    # The address is this server's own, and not one that it would talk to.
    os.environ.pop("PREFECT_API_URL", None)
    import uvicorn

    uvicorn.run(
        "prefect.server.api.server:create_app",
        factory=True,
        host="127.0.0.1",
        port=port,
        log_level="error",
        lifespan="on",
    )


if __name__ == "__main__":
    main()
