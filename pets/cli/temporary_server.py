"""Prefect's API without its UI, for one command.

Run as `python -m pets.cli.temporary_server SOCKET PARENT`, where SOCKET is the number of an
inherited file descriptor, bound to the address. Like Prefect's temporary server, with three
differences: the calling process does not import the server; Ctrl-C does not reach it, so that the
run's final state is recorded; on Linux it ends when its parent is killed.
"""

from __future__ import annotations

import os
import signal
import socket
import sys

from pets_core.runtime.signals import die_with_parent

__all__ = ["main"]

_SETTINGS = {
    "PREFECT_UI_ENABLED": "0",
    # As Prefect sets them for its own: no schedules, no late runs.
    "PREFECT__SERVER_EPHEMERAL": "1",
    "PREFECT__SERVER_FINAL": "1",
}


def main() -> None:
    """Serve until SIGTERM."""
    descriptor, parent = map(int, sys.argv[1:])
    die_with_parent(signal.SIGTERM, parent)
    os.environ |= _SETTINGS
    # The server must not talk to the configured one, which has not answered.
    os.environ.pop("PREFECT_API_URL", None)
    import uvicorn

    config = uvicorn.Config(
        "prefect.server.api.server:create_app", factory=True, log_level="error", lifespan="on"
    )
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=descriptor)])


if __name__ == "__main__":
    main()
