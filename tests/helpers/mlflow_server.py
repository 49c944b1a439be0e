"""A real MLflow server on loopback, with SQLite."""

import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ports import free_port

__all__ = ["run_mlflow"]

_HANG_SECONDS = 300


@contextmanager
def run_mlflow(folder: Path) -> Iterator[str]:
    """Run a server that stores everything in a folder until the end of the block; yield its URL."""
    port = free_port()
    url, log = f"http://127.0.0.1:{port}", folder / "server.log"
    command = [
        sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination", str(folder / "artifacts"),
    ]  # fmt: skip
    with log.open("wb") as output:
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=folder)
        try:
            _wait_for(url, server, log)
            yield url
        finally:
            server.terminate()
            server.wait()


def _wait_for(url: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + _HANG_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/health"):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(log.read_text())
