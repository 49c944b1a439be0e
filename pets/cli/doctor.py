"""`pets doctor`: check what a run on this machine needs."""

from __future__ import annotations

import argparse
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from pets.cli.exit_codes import FAILED
from pets.cli.store_actions import add_store
from pets.cli.tables import add_json, print_json
from pets.store import resolve_cache_dir
from pets_core import storage
from pets_core.config.launch import LaunchConfig
from pets_core.errors import PetsError

__all__ = ["Check", "add_arguments", "run_command"]

_PACKAGES = ("torch", "torchvision", "timm", "accelerate", "pyarrow", "prefect")
_EXTRAS = {
    "s3": "s3fs",
    "gcs": "gcsfs",
    "azure": "adlfs",
    "heif": "pillow-heif",
    "jxl": "pillow-jxl-plugin",
    "onnx": "onnxruntime",
    "mlflow": "mlflow-skinny",
    "wandb": "wandb",
}
"""A package of each extra whose absence is only noticed when a run needs it."""
_GIB = 1 << 30
_LOW_DISK_GIB = 5.0


@dataclass(frozen=True)
class Check:
    """Result of one check.

    Attributes:
        name: What is checked.
        state: ok; warning: a run may fail; error: a run fails.
        detail: What was found, and for a problem the remedy.
    """

    name: str
    state: Literal["ok", "warning", "error"]
    detail: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `pets doctor` to its parser."""
    add_store(parser)
    cache_dir = resolve_cache_dir()
    parser.add_argument("--cache_dir", default=cache_dir, help=f"path (default: {cache_dir})")
    add_json(parser)


def run_command(arguments: argparse.Namespace) -> None:
    """Print all checks. Exits with 1 if one of them is an error."""
    checks = list(_checks(arguments.store, arguments.cache_dir))
    if arguments.json:
        print_json(checks)
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            print(f"{check.state:8} {check.name:{width}}  {check.detail}")
    if any(check.state == "error" for check in checks):
        sys.exit(FAILED)


def _checks(store: str, cache_dir: str) -> Iterator[Check]:
    names = ("pets-pipeline", *_PACKAGES)
    found = ", ".join(f"{name} {version(name)}" for name in names)
    yield Check("versions", "ok", f"Python {platform.python_version()}, {found}")
    yield Check("extras", "ok", _extras())
    yield _check("device", _device)
    yield _check("store", lambda: _folder("store", store))
    yield _check("cache_dir", lambda: _folder("cache_dir", cache_dir))
    yield _check("server", _server)


def _check(name: str, find: Callable[[], tuple[Literal["ok", "warning"], str]]) -> Check:
    try:
        return Check(name, *find())
    except PetsError as error:
        return Check(name, "error", str(error))


def _extras() -> str:
    installed, missing = [], []
    for extra, package in _EXTRAS.items():
        try:
            version(package)
            installed.append(extra)
        except PackageNotFoundError:
            missing.append(extra)
    return f"installed: {', '.join(installed) or 'none'}; not installed: {', '.join(missing)}"


def _device() -> tuple[Literal["ok"], str]:
    from pets_core.training.devices import describe_device

    return "ok", describe_device(LaunchConfig())


def _folder(setting: str, place: str) -> tuple[Literal["ok", "warning"], str]:
    url = storage.absolute(place)
    storage.check_writable(url, setting)
    if storage.is_url(url):
        return "ok", f"{url}: writable"
    free = shutil.disk_usage(url).free / _GIB
    detail = f"{url}: writable, {free:.1f} GiB free"
    if free < _LOW_DISK_GIB:
        return "warning", f"{detail}. Free space, or set {setting} to another disk"
    return "ok", detail


def _server() -> tuple[Literal["ok"], str]:
    from prefect.settings import get_current_settings

    from pets.cli.server import check_server
    from pets.cli.writable import check_database

    settings = get_current_settings()
    if check_server(required=True):
        check_database()
        return "ok", f"none configured: each run starts a temporary one; data in {settings.home}"
    return "ok", f"{settings.api.url} answers"
