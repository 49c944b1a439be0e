"""PostgreSQL server of the installed system package, with databases for Prefect."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from ports import free_port

__all__ = ["PASSWORD", "Postgres", "dump"]

PASSWORD = "pets-secret-of-the-database"
_USER = "prefect"
_TIMEOUT_SECONDS = 30
_TEMPLATE = "migrated"


class Postgres:
    """Context manager that runs a PostgreSQL server on the loopback interface."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._is_migrated = False
        self._port = free_port()

    def __enter__(self) -> "Postgres":
        initdb, postgres = _program("initdb"), _program("postgres")
        with ExitStack() as stack:
            # Not in pytest's folders: each pytest run resets their permissions, and the server,
            # which does not run as root, could no longer access its files.
            folder = Path(tempfile.mkdtemp(prefix="pets-postgres-"))
            stack.callback(shutil.rmtree, folder)
            data, password = folder / "data", folder / "password"
            password.write_text(PASSWORD)
            user = "postgres" if os.geteuid() == 0 else None
            if user:
                for path in (folder, password):
                    shutil.chown(path, user)
            settings = ["-U", _USER, "--pwfile", password, "-A", "scram-sha-256", "-E", "UTF8"]
            command = [initdb, "--no-sync", "-D", data, *settings]
            subprocess.run(command, check=True, user=user, capture_output=True)
            # Durability is not needed in a test.
            options = ["-c", "fsync=off", "-c", "max_connections=300", "-k", ""]
            command = [postgres, "-D", data, "-h", "127.0.0.1", "-p", str(self._port), *options]
            with (folder / "log").open("w") as log:
                process = subprocess.Popen(command, user=user, stdout=log, stderr=log)
            stack.callback(_stop, process)
            self._wait()
            self._running = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    def database(self) -> str:
        """Create a database with Prefect's tables and return its URL in Prefect's format."""
        if not self._is_migrated:
            self._query(f"CREATE DATABASE {_TEMPLATE}")
            command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "-y"]
            address = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": self._address(_TEMPLATE)}
            done = subprocess.run(command, env=os.environ | address, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
            self._is_migrated = True
        name = f"prefect_{next(self._numbers)}"
        self._query(f"CREATE DATABASE {name} TEMPLATE {_TEMPLATE}")
        return self._address(name)

    def restored(self, url: str, file: Path) -> str:
        """Back up a database to a file, restore it to another and return that one's URL."""
        backup = [_program("pg_dump"), "--format=custom", "--dbname", _plain(url), "--file", file]
        subprocess.run(backup, check=True)
        self._query("CREATE DATABASE restored")
        address = self._address("restored")
        restore = [_program("pg_restore"), "--clean", "--if-exists", "--dbname", _plain(address)]
        subprocess.run([*restore, file], check=True)
        return address

    def _address(self, name: str) -> str:
        return f"postgresql+asyncpg://{_USER}:{PASSWORD}@127.0.0.1:{self._port}/{name}"

    def _query(self, text: str) -> None:
        done = self._try(text)
        assert done.returncode == 0, done.stderr

    def _try(self, text: str) -> subprocess.CompletedProcess[str]:
        command = [_program("psql"), "--quiet", "--dbname", _plain(self._address("postgres"))]
        return subprocess.run([*command, "--command", text], capture_output=True, text=True)

    def _wait(self) -> None:
        deadline = time.monotonic() + _TIMEOUT_SECONDS
        while (done := self._try("SELECT 1")).returncode != 0:
            assert time.monotonic() < deadline, done.stderr
            time.sleep(0.05)


def dump(url: str) -> str:
    """Return the contents of a database as text."""
    command = [_program("pg_dump"), "--dbname", _plain(url)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _stop(process: "subprocess.Popen[bytes]") -> None:
    # Fast shutdown, which does not wait for open connections.
    process.send_signal(signal.SIGINT)
    try:
        process.wait(_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _plain(url: str) -> str:
    """Return the URL in the format of PostgreSQL's own programs."""
    return url.replace("postgresql+asyncpg", "postgresql")


def _program(name: str) -> str:
    debian = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    found = shutil.which(name) if not debian else str(debian[-1])
    if not found:
        pytest.skip("PostgreSQL is not installed")
    return found
