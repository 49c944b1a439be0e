"""Interrupted ingests: readers see the old or the new version, and a retry succeeds."""

import errno
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

from pets_core.config.pipeline import PipelineConfig
from pets_core.data.ingest.commit import ingest
from pets_core.data.versions import list_versions, verify
from pets_core.errors import PetsError

# Forks one process per n; it kills itself with SIGKILL at the n-th file-writing event.
KILLER = """
import os, signal, sys
from contextlib import contextmanager
from pets_core import storage
from pets_core.config.pipeline import PipelineConfig
from pets_core.data.ingest.commit import ingest

config = PipelineConfig.model_validate_json(sys.argv[1])
real, events, last = storage.writing, 0, 0

def event():
    global events
    events += 1
    if events == last:
        os.kill(os.getpid(), signal.SIGKILL)

@contextmanager
def writing(url, *setting):
    event()                      # before the file exists
    with real(url, *setting) as file:
        yield file
        event()                  # written, not yet renamed
    event()                      # renamed

storage.writing = writing
while True:
    last += 1
    child = os.fork()
    if child == 0:
        ingest(config.model_copy(update={"store": f"{config.store}/{last}"}))
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
print(last)
"""
INGEST = """
import sys
from pets_core.config.pipeline import PipelineConfig
from pets_core.data.ingest.commit import ingest

config = PipelineConfig.model_validate_json(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
print(ingest(config).fingerprint)
"""


@pytest.fixture
def settings(tmp_path, write_folder) -> PipelineConfig:
    return PipelineConfig.model_validate(
        {
            "store": str(tmp_path / "store"),
            "cache_dir": str(tmp_path / "cache"),
            "source": {"url": str(write_folder(tmp_path / "mine", {"a": 20, "b": 20}))},
            "ingest": {"num_workers": 1},
        }
    )


def start(settings: PipelineConfig) -> subprocess.Popen:
    """Start a process that ingests once a line arrives on its standard input."""
    process = subprocess.Popen(
        [sys.executable, "-c", INGEST, settings.model_dump_json()],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    return process


def signal_start(process: subprocess.Popen) -> None:
    process.stdin.write("start\n")
    process.stdin.flush()


def assert_consistent(store: str, expected) -> None:
    """Assert that the store has no version, or the expected one with every photo readable."""
    found = list_versions(store)
    assert [m.fingerprint for m in found] in ([], [expected.fingerprint])
    for manifest in found:
        assert manifest.splits == expected.splits
        assert [error for _, error in verify(manifest) if error] == []


@pytest.mark.slow
def test_ingest_killed_at_any_write_leaves_a_consistent_store(settings, tmp_path):
    expected = ingest(settings.model_copy(update={"store": str(tmp_path / "expected")}))
    done = subprocess.run(
        [sys.executable, "-c", KILLER, settings.model_dump_json()],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    num_events = int(done.stdout) - 1
    assert num_events >= 3 * 9  # two shards, their journal records, plan, contract, version files
    committed = 0
    for number in range(1, num_events + 1):
        store = f"{settings.store}/{number}"
        assert_consistent(store, expected)
        committed += len(list_versions(store))
        again = ingest(settings.model_copy(update={"store": store}))
        assert again.fingerprint == expected.fingerprint
        assert_consistent(store, expected)
    assert committed == 1  # killed after the manifest was renamed


@pytest.mark.slow
def test_ingest_killed_at_random_times_leaves_a_consistent_store(settings, tmp_path, write_folder):
    write_folder(tmp_path / "mine", {"a": 300, "b": 300})
    expected = ingest(settings.model_copy(update={"store": str(tmp_path / "expected")}))
    rng, exit_codes = random.Random(0), []
    for _ in range(6):
        process = start(settings)
        signal_start(process)
        time.sleep(rng.uniform(0.02, 0.8))
        process.kill()
        exit_codes.append(process.wait())
        process.communicate()
        assert_consistent(settings.store, expected)
    assert -signal.SIGKILL in exit_codes
    assert ingest(settings).fingerprint == expected.fingerprint
    assert_consistent(settings.store, expected)


def test_concurrent_ingests_store_one_version(settings, tmp_path):
    expected = ingest(settings.model_copy(update={"store": str(tmp_path / "expected")}))
    processes = [start(settings) for _ in range(3)]
    for process in processes:
        signal_start(process)
    for process in processes:
        out, error = process.communicate(timeout=600)
        assert out.strip() == expected.fingerprint, error
    assert_consistent(settings.store, expected)
    assert len(list_versions(settings.store)) == 1


def test_file_size_limit_keeps_the_previous_version(settings, tmp_path):
    """As on a full disk, a write fails midway through a shard."""
    first = ingest(settings)
    for number in range(200):
        (tmp_path / "mine/a" / f"new-{number}.jpg").write_bytes(
            (tmp_path / "mine/a/0.jpg").read_bytes() + str(number).encode()
        )
    process = start(settings)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (20_000, 20_000))
    signal_start(process)
    _, stderr = process.communicate(timeout=600)
    assert process.returncode != 0
    assert os.strerror(errno.EFBIG) in stderr
    assert_consistent(settings.store, first)
    assert not [p for p in Path(settings.store).rglob("*") if ".partial-" in p.name]
    grown = ingest(settings)
    assert (grown.parent, grown.num_rows) == (first.fingerprint, 240)
    assert [error for _, error in verify(grown) if error] == []


def test_full_disk_raises_pets_error_and_a_retry_succeeds(settings, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("this user may not mount a small disk")
    try:
        full = settings.model_copy(update={"store": str(disk / "store")})
        with pytest.raises(PetsError, match=r"No space left on device.*set store to another disk"):
            ingest(full)
        assert list_versions(full.store) == []
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        manifest = ingest(full)
        assert [error for _, error in verify(manifest) if error] == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


class FlakyFile(MemoryFile):
    def write(self, data):
        if FlakyStore.writes_left == 0:
            raise ConnectionError("the store went away")
        FlakyStore.writes_left -= 1
        return super().write(data)


class FlakyStore(MemoryFileSystem):
    """In-memory store that fails permanently after `writes_left` writes."""

    protocol = ("flaky", "memory")
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list] = [""]
    writes_left = -1

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("flaky://"))

    def _open(self, path, mode="rb", **options):
        file = super()._open(path, mode, **options)
        if mode == "wb":
            file.__class__ = FlakyFile
        return file


@pytest.fixture
def flaky():
    fsspec.register_implementation("flaky", FlakyStore, clobber=True)
    yield
    FlakyStore.writes_left = -1
    FlakyStore.store.clear()


def attempt(settings: PipelineConfig) -> Exception | None:
    try:
        ingest(settings)
    except Exception as error:  # noqa: BLE001 - a PetsError if the store check failed
        return error
    return None


@pytest.mark.slow
def test_store_that_fails_at_any_write_stays_consistent(settings, tmp_path, flaky):
    expected = ingest(settings.model_copy(update={"store": str(tmp_path / "expected")}))
    flaky_settings = settings.model_copy(update={"store": "flaky://bucket/store"})
    failures = 0
    for number in range(1000):
        FlakyStore.store.clear()
        FlakyStore.writes_left = number
        failure = attempt(flaky_settings)
        if failure is None:
            break
        assert "the store went away" in str(failure)
        FlakyStore.writes_left = -1
        assert_consistent(flaky_settings.store, expected)
        assert ingest(flaky_settings).fingerprint == expected.fingerprint
        failures += 1
    assert failures > 10
    assert_consistent(flaky_settings.store, expected)
