"""Commands without a writable home: the error names each folder and the setting to change."""

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
    """Mount a tmpfs with the given options; skip the test without root rights."""
    mounted: list[str] = []

    def mount_one(options: str) -> Path:
        folder = tmp_path / f"mount-{options.partition('=')[0]}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if sys.platform != "linux" or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting requires root")
        mounted.append(str(folder))
        return folder

    yield mount_one
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture
def no_home(tmp_path) -> Path:
    (tmp_path / "file").touch()
    return tmp_path / "file/home"


@pytest.fixture(
    params=[
        "below a file",
        pytest.param("proc", marks=pytest.mark.slow),
        pytest.param("read-only", marks=pytest.mark.slow),
    ]
)
def home(request, no_home) -> Path:
    if request.param == "read-only":
        return request.getfixturevalue("mount")("ro")
    if request.param == "proc":
        if not Path("/proc/self").exists():
            pytest.skip("no /proc")
        return Path("/proc/no-home")
    return no_home


def run_pets(arguments, home, **variables) -> tuple[int, list[str]]:
    """Run a command without a Prefect server; return its exit code and error lines."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("PETS_", "PREFECT_"))}
    done = subprocess.run(
        [sys.executable, "-m", "pets", *arguments],
        env=own | {"HOME": str(home), **variables}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.stdout == ""
    return done.returncode, done.stderr.splitlines()


def test_unwritable_home_is_reported_in_one_line_per_folder(home, tmp_path):
    code, lines = run_pets(("ingest",), home, PETS_STORE=str(tmp_path / "store"))
    assert code == 2
    server, cache = lines
    assert server.startswith(f"error: PREFECT_HOME = {home}/.prefect: cannot be written (")
    assert "Set PREFECT_HOME to a folder that you may write to" in server
    assert cache.strip().startswith(f"cache_dir = {home}/.cache/pets: cannot be written (")
    assert "Set cache_dir to a writable location" in cache
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    "command",
    [
        "run",
        pytest.param("train", marks=pytest.mark.slow),
        pytest.param("collab", marks=pytest.mark.slow),
        pytest.param("ui", marks=pytest.mark.slow),
    ],
)
def test_only_the_prefect_home_is_reported_if_the_cache_is_writable(no_home, command, tmp_path):
    code, (line,) = run_pets((command,), no_home, PETS_CACHE_DIR=str(tmp_path / "cache"))
    assert code == 2
    assert line.startswith(f"error: PREFECT_HOME = {no_home}/.prefect: cannot be written (")


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [("ingest",), ("collab", "--ratings.url", "https://host.invalid/ratings.csv")]
)
def test_only_the_cache_is_reported_if_the_prefect_home_is_writable(no_home, arguments, tmp_path):
    code, (line,) = run_pets(arguments, no_home, PREFECT_HOME=str(tmp_path / "a/b/prefect"))
    assert code == 2
    assert line.startswith(f"error: cache_dir = {no_home}/.cache/pets: cannot be written (")


def test_configured_server_needs_no_writable_home(no_home):
    code, (line,) = run_pets(("run",), no_home, PREFECT_API_URL="http://127.0.0.1:9/api")
    assert code == 2
    assert line.startswith("error: PREFECT_API_URL = http://127.0.0.1:9/api: Failed to reach")


@pytest.mark.slow
@pytest.mark.parametrize("option", ["size=1m", "nr_inodes=1"])
def test_full_prefect_home_is_reported(mount, option, tmp_path):
    code, (line,) = run_pets(
        ("ingest",), tmp_path, PREFECT_HOME=str(mount(option)), PETS_CACHE_DIR=str(tmp_path)
    )
    assert code == 2
    assert "cannot be written (No space left on device)" in line


def database_at(path: object):
    return temporary_settings(
        {PREFECT_SERVER_DATABASE_CONNECTION_URL: f"sqlite+aiosqlite:///{path}"}
    )


def test_unwritable_database_path_is_rejected(tmp_path):
    (tmp_path / "file").touch()
    with database_at(f"{tmp_path}/file/a.db"), pytest.raises(PetsError) as caught:
        check_database()
    assert str(caught.value).startswith("PREFECT_SERVER_DATABASE_CONNECTION_URL = sqlite")
    (tmp_path / "a.db").mkdir()
    with database_at(tmp_path / "a.db"), pytest.raises(PetsError, match="Is a directory"):
        check_database()


def test_check_of_a_writable_database_changes_no_files(tmp_path):
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
