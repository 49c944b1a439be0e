"""`pets serve`: answer HTTP requests with a model's predictions."""

from __future__ import annotations

import argparse
import logging
import math
import os
import socket
import sys
from typing import NamedTuple

from pets.cli.store_actions import MODEL_HELP, add_store
from pets.serving.settings import ServeSettings
from pets_core.errors import PetsError

__all__ = ["TOKEN_VARIABLE", "add_arguments", "run_command"]

TOKEN_VARIABLE = "PETS_SERVE_TOKEN"  # noqa: S105 - the name of a variable
_LOCAL = ("127.0.0.1", "localhost", "::1")
_KEEP_ALIVE_SECONDS = 75
"""Longer than clients and load balancers keep idle connections (httpx 5 s, AWS 60 s). A request
that arrives while the server closes the connection would be lost."""
_SHUTDOWN_SECONDS = 30


class _Number(NamedTuple):
    """A setting with a number: its lowest value, and the help of its flag."""

    setting: str
    lowest: float
    metavar: str
    help: str

    @property
    def flag(self) -> str:
        return f"--{self.setting.replace('_', '-')}"


_NUMBERS = (
    _Number("max_mb", 0.001, "MB", "maximum size of a request, megabytes"),
    _Number("max_images", 1, "N", "maximum number of images per request"),
    _Number("poll_seconds", 0.1, "S", "time between two looks whether the alias has moved"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `pets serve` to its parser."""
    parser.add_argument("model", metavar="MODEL", help=f"ONNX file, {MODEL_HELP}")
    add_store(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="port; 0: any (default: 8000)")
    parser.add_argument(
        "--device", choices=("auto", "cpu"), default="auto",
        help="auto uses the machine's GPU, if it has one (default: auto)",
    )  # fmt: skip
    for number in _NUMBERS:
        default = getattr(ServeSettings, number.setting)
        parser.add_argument(
            number.flag, type=type(default), default=default, metavar=number.metavar,
            help=f"{number.help} (default: {default:g})",
        )  # fmt: skip


def run_command(arguments: argparse.Namespace) -> None:
    """Serve the model until the process is stopped.

    Raises:
        PetsError: A number is out of range, the port is in use, an extra is not installed, or there
            is no such model.
    """
    _check(arguments)
    try:
        import uvicorn

        from pets.serving.app import create_app
    except ImportError as error:
        raise PetsError(
            f"{error.name} is not installed; run pip install 'pets-pipeline[serve]'"
        ) from error
    settings = ServeSettings(
        model=arguments.model,
        store=arguments.store,
        device=arguments.device,
        max_mb=arguments.max_mb,
        max_images=arguments.max_images,
        poll_seconds=arguments.poll_seconds,
        token=_read_token(),
    )
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    # HTTP clients log signed URLs at this level.
    logging.getLogger("pets").setLevel(logging.INFO)
    with _bind(arguments.host, arguments.port) as listener:
        config = uvicorn.Config(
            create_app(settings),
            log_config=None,
            log_level="warning",
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
        )
        _announce(settings, arguments.host, listener.getsockname()[1])
        uvicorn.Server(config).run(sockets=[listener])


def _check(arguments: argparse.Namespace) -> None:
    for number in _NUMBERS:
        value = getattr(arguments, number.setting)
        if not (math.isfinite(value) and value >= number.lowest):
            raise PetsError(f"{number.flag} = {value:g}: must be at least {number.lowest:g}")
    if not 0 <= arguments.port < 1 << 16:
        raise PetsError(f"--port = {arguments.port}: must be from 0 to 65535")


def _read_token() -> str:
    """Return the token of the environment, without the line break of a file.

    Raises:
        PetsError: It has characters that a header cannot hold.
    """
    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    if not token.isascii():
        raise PetsError(f"{TOKEN_VARIABLE} has characters that are not ASCII: choose another token")
    return token


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        # Its own text repeats the address.
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise PetsError(
            f"cannot listen on {host}:{port}: {reason}. Set --host and --port"
        ) from error


def _announce(settings: ServeSettings, host: str, port: int) -> None:
    address = f"[{host}]" if ":" in host else host
    print(f"Serving {settings.model} at http://{address}:{port}", flush=True)
    if host not in _LOCAL and not settings.token:
        print(
            f"warning: requests from other machines need no token. Set {TOKEN_VARIABLE}",
            file=sys.stderr,
        )
