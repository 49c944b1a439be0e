"""Temporary Prefect server for one command: the API without the UI.

Run as `python -m pets.cli.temporary_server SOCKET PARENT`, where SOCKET is the number of an
inherited file descriptor that is bound to the address and PARENT is a process id. It differs from
Prefect's temporary server in three ways. The calling process does not import the server. It does
not receive Ctrl-C, so that it records the run's final state. On Linux it ends when its parent is
killed.
"""

from __future__ import annotations

import os
import signal
import socket
import sys

from pets_core.runtime.importing import import_object
from pets_core.runtime.signals import die_with_parent

__all__ = ["main"]

_SETTINGS = {
    "PREFECT_UI_ENABLED": "0",
    # As in Prefect's temporary server: no scheduler, no late runs.
    "PREFECT__SERVER_EPHEMERAL": "1",
    "PREFECT__SERVER_FINAL": "1",
}


def main() -> None:
    """Run Prefect's server on the socket inherited from the parent, until SIGTERM or its death."""
    descriptor, parent = map(int, sys.argv[1:])
    die_with_parent(signal.SIGTERM, parent)
    os.environ |= _SETTINGS
    # The server must not call the configured server, which has not answered.
    os.environ.pop("PREFECT_API_URL", None)
    import uvicorn

    create_app = import_object("prefect.server.api.server:create_app")
    config = uvicorn.Config(create_app, factory=True, log_level="error", lifespan="on")
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=descriptor)])


if __name__ == "__main__":
    main()
