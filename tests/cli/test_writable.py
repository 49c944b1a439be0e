"""Commands whose home folder cannot be written: each folder is named with what to set."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from prefect.settings import PREFECT_SERVER_DATABASE_CONNECTION_URL, temporary_settings

from pets.cli.writable import check_database
from pets_core.errors import PetsError


@pytest.fixture
def mount(tmp_path):
    """Mounts a tmpfs with these options; skips where that takes more rights."""
    mounted: list[str] = []

    def mount_one(options: str) -> Path:
        folder = tmp_path / f"mount-{options.partition('=')[0]}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if sys.platform != "linux" or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting takes root")
        mounted.append(str(folder))
        return folder

    yield mount_one
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture
def no_home(tmp_path) -> Path:
    (tmp_path / "file").touch()
    return tmp_path / "file/home"


@pytest.fixture(params=["below a file", "proc", "read-only"])
def home(request, no_home) -> Path:
    if request.param == "read-only":
        return request.getfixturevalue("mount")("ro")
    if request.param == "proc":
        if not Path("/proc/self").exists():
            pytest.skip("no /proc")
        return Path("/proc/no-home")
    return no_home


def start(words, home, **variables) -> tuple[int, list[str]]:
    """Exit code and error lines of a command without a Prefect server."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("PETS_", "PREFECT_"))}
    done = subprocess.run(
        [sys.executable, "-m", "pets", *words],
        env=own | {"HOME": str(home), **variables}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.stdout == ""
    return done.returncode, done.stderr.splitlines()


def test_a_home_that_cannot_be_written_is_two_lines(home, tmp_path):
    code, lines = start(("ingest",), home, PETS_STORE=str(tmp_path / "store"))
    assert code == 2
    server, cache = lines
    assert server.startswith(f"error: PREFECT_HOME = {home}/.prefect: cannot be written (")
    assert "Set PREFECT_HOME to a folder that you may write to" in server
    assert cache.strip().startswith(f"cache_dir = {home}/.cache/pets: cannot be written (")
    assert "Set cache_dir to a writable location" in cache
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("command", ["run", "train", "collab", "ui"])
def test_only_the_home_of_prefect(no_home, command, tmp_path):
    code, (line,) = start((command,), no_home, PETS_CACHE_DIR=str(tmp_path / "cache"))
    assert code == 2
    assert line.startswith(f"error: PREFECT_HOME = {no_home}/.prefect: cannot be written (")


@pytest.mark.parametrize(
    "words", [("ingest",), ("collab", "--ratings.url", "https://host.invalid/ratings.csv")]
)
def test_only_the_cache(no_home, words, tmp_path):
    code, (line,) = start(words, no_home, PREFECT_HOME=str(tmp_path / "a/b/prefect"))
    assert code == 2
    assert line.startswith(f"error: cache_dir = {no_home}/.cache/pets: cannot be written (")


def test_a_configured_server_needs_no_home(no_home):
    code, (line,) = start(("run",), no_home, PREFECT_API_URL="http://127.0.0.1:9/api")
    assert code == 2
    assert line.startswith("error: PREFECT_API_URL = http://127.0.0.1:9/api: Failed to reach")


@pytest.mark.parametrize("option", ["size=1m", "nr_inodes=1"])
def test_a_home_without_room_for_a_database(mount, option, tmp_path):
    code, (line,) = start(
        ("ingest",), tmp_path, PREFECT_HOME=str(mount(option)), PETS_CACHE_DIR=str(tmp_path)
    )
    assert code == 2
    assert "cannot be written (No space left on device)" in line


def database_at(path: object):
    return temporary_settings(
        {PREFECT_SERVER_DATABASE_CONNECTION_URL: f"sqlite+aiosqlite:///{path}"}
    )


def test_a_database_in_another_place(tmp_path):
    (tmp_path / "file").touch()
    with database_at(f"{tmp_path}/file/a.db"), pytest.raises(PetsError) as caught:
        check_database()
    assert str(caught.value).startswith("PREFECT_SERVER_DATABASE_CONNECTION_URL = sqlite")
    (tmp_path / "a.db").mkdir()
    with database_at(tmp_path / "a.db"), pytest.raises(PetsError, match="Is a directory"):
        check_database()


def test_databases_that_may_be_written_are_left_as_they_are(tmp_path):
    (tmp_path / "a.db").write_bytes(b"content")
    with database_at(tmp_path / "a.db"):
        check_database()
    assert (tmp_path / "a.db").read_bytes() == b"content"
    with database_at(tmp_path / "new/b.db"):
        check_database()
    assert not list((tmp_path / "new").iterdir())
    for url in ("sqlite+aiosqlite:///:memory:", "postgresql+asyncpg://user:secret@host/prefect"):
        with temporary_settings({PREFECT_SERVER_DATABASE_CONNECTION_URL: url}):
            check_database()
