"""A real PostgreSQL server with a database for Prefect, of the machine's own package."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["PASSWORD", "database", "dump", "restored"]

PASSWORD = "pets-secret-of-the-database"
_USER = "prefect"
_PATIENCE_SECONDS = 30


def _program(name: str) -> str:
    debian = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    found = shutil.which(name) if not debian else str(debian[-1])
    if not found:
        pytest.skip("PostgreSQL is not installed")
    return found


@contextmanager
def database(folder: Path) -> Iterator[str]:
    """Start a server on loopback.

    Yields:
        The database's address, as Prefect takes it.
    """
    programs = {name: _program(name) for name in ("initdb", "postgres", "createdb")}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data, password = folder / "data", folder / "password"
    folder.mkdir(parents=True)
    password.write_text(PASSWORD)
    # The server refuses to be root.
    user = "postgres" if os.geteuid() == 0 else None
    if user:
        for path in (folder, password):
            shutil.chown(path, user)
        for parent in folder.parents:
            if parent.stat().st_uid == 0 and not parent.stat().st_mode & 0o001:
                parent.chmod(parent.stat().st_mode | 0o011)
    settings = ["-U", _USER, "--pwfile", str(password), "-A", "scram-sha-256", "-E", "UTF8"]
    subprocess.run(
        [programs["initdb"], "-D", data, *settings], check=True, user=user, capture_output=True
    )
    command = [programs["postgres"], "-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", ""]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, user=user, stdout=log, stderr=log)
    try:
        _create(programs["createdb"], port)
        yield f"postgresql+asyncpg://{_USER}:{PASSWORD}@127.0.0.1:{port}/prefect"
    finally:
        # At once, connections or none.
        process.send_signal(signal.SIGINT)
        process.wait(_PATIENCE_SECONDS)


def dump(url: str) -> str:
    """All that a database holds, as text."""
    address = url.replace("postgresql+asyncpg", "postgresql")
    command = [_program("pg_dump"), "--dbname", address]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def restored(url: str, file: Path) -> str:
    """Back a database up into a file, and restore that into another one; returns its address."""
    address = url.replace("postgresql+asyncpg", "postgresql")
    subprocess.run(
        [_program("pg_dump"), "--format=custom", "--dbname", address, "--file", file], check=True
    )
    server, _ = address.rsplit("/", 1)
    another = f"{server}/restored"
    subprocess.run(
        [_program("psql"), "--quiet", "--dbname", address, "--command", "CREATE DATABASE restored"],
        check=True,
    )
    subprocess.run(
        [_program("pg_restore"), "--clean", "--if-exists", "--dbname", another, file], check=True
    )
    return another.replace("postgresql", "postgresql+asyncpg")


def _create(createdb: str, port: int) -> None:
    command = [createdb, "-h", "127.0.0.1", "-p", str(port), "-U", _USER, "prefect"]
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        done = subprocess.run(
            command, env=os.environ | {"PGPASSWORD": PASSWORD}, capture_output=True, text=True
        )
        if done.returncode == 0:
            return
        assert time.monotonic() < deadline, done.stderr
        time.sleep(0.2)
