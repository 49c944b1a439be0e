"""Prefect server process with its own database."""

import base64
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path

import processes
import pytest
from ports import free_port

__all__ = ["Server"]

_MAX_ATTEMPTS = 20
_TIMEOUT = 60  # seconds, as in Prefect's client; a locked SQLite file can take more than ten
_HANG_SECONDS = 600  # far above any wait, also on a machine with other load


class Server:
    """Prefect server in a subprocess, with its own database.

    Args:
        folder: Folder for its files.
        home: Prefect home to copy. Without it the server initialises its database, which takes
            eight seconds.
    """

    def __init__(self, folder: Path, home: Path | None = None) -> None:
        if home:
            shutil.copytree(home, folder / "prefect")
        self._port = free_port()
        self.url, self._folder = f"http://127.0.0.1:{self._port}/api", folder
        self.environment = os.environ | {
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_API_URL": self.url,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        }

    @contextmanager
    def started(self) -> Iterator[subprocess.Popen[bytes]]:
        command = ("-m", "prefect", "server", "start", "--port", str(self._port))
        with self.running(*command) as process:
            self.wait_for(lambda: self.request("health"))
            yield process

    @contextmanager
    def running(self, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run a Python process that uses the server. Its output is written to output.log."""
        command = [sys.executable, *arguments]
        with (self._folder / "output.log").open("a") as log:
            process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)
        try:
            yield process
        finally:
            processes.end(process)

    def run(self, *arguments: object) -> tuple[str, str]:
        """Run Python, which must succeed, and return its standard output and error."""
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout, done.stderr

    def request(
        self, path: str, payload: dict | list | None = None, *, method: str | None = None
    ) -> object:
        """Send a request, with retries while the server is busy, as Prefect's client does."""
        for _ in range(_MAX_ATTEMPTS):
            try:
                return self._request_once(path, payload, method)
            except urllib.error.HTTPError as error:
                if error.code != HTTPStatus.SERVICE_UNAVAILABLE:
                    raise
                time.sleep(1)
        pytest.fail(f"{path}: the server was busy {_MAX_ATTEMPTS} times")

    def _request_once(self, path: str, payload: object, method: str | None) -> object:
        data = None if payload is None else json.dumps(payload).encode()
        headers = {"Content-Type": "application/json", **self._credentials()}
        message = urllib.request.Request(f"{self.url}/{path}", data, headers, method=method)
        with urllib.request.urlopen(message, timeout=_TIMEOUT) as response:
            return json.loads(response.read() or "null")

    def _credentials(self) -> dict[str, str]:
        """Return the headers for basic auth and CSRF protection, if the server uses them."""
        given = self.environment.get("PREFECT_API_AUTH_STRING")
        if not given:
            return {}
        headers = {"Authorization": "Basic " + base64.b64encode(given.encode()).decode()}
        address = f"{self.url}/csrf-token?client=tests"
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers)) as response:
            token = json.load(response)["token"]
        return headers | {"Prefect-Csrf-Token": token, "Prefect-Csrf-Client": "tests"}

    def wait_for(self, condition: Callable[[], object]) -> object:
        deadline = time.monotonic() + _HANG_SECONDS
        while time.monotonic() < deadline:
            try:
                if found := condition():
                    return found
            except OSError:
                pass
            time.sleep(0.5)
        log = (self._folder / "output.log").read_text()[-5000:]
        pytest.fail(f"{condition} was not true within {_HANG_SECONDS} s:\n{log}")
