"""The cache: unused files are removed, and files that a run may be reading are kept."""

import gzip
import os
import time
from pathlib import Path

import pytest

from pets_core import storage
from pets_core.data.sources.archives import open_archive
from pets_core.storage.cache import UNUSED_DAYS, get_lock, remove_unused
from pets_core.storage.download import local_file


def age(path: Path, days: float = UNUSED_DAYS + 1) -> Path:
    """Set access and modification time of a file to `days` ago."""
    then = time.time() - 86_400 * days
    os.utime(path, (then, then))
    return path


def make(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x")
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


def put(tmp_path: Path, name: str, data: bytes = b"data") -> str:
    url = f"memory://{tmp_path.name}/{name}"
    storage.write_bytes(url, data)
    return url


def test_only_files_unused_for_long_are_removed(tmp_path):
    for number, days in enumerate([0, UNUSED_DAYS - 0.1, UNUSED_DAYS + 0.1, 1000]):
        age(make(tmp_path / f"{number:024}-photos.tar"), days)
    read_recently = age(make(tmp_path / f"{4:024}.data"))
    os.utime(read_recently, (time.time(), read_recently.stat().st_mtime))
    written_recently = age(make(tmp_path / f"{5:024}-photos.tar.partial"))
    os.utime(written_recently, (written_recently.stat().st_atime, time.time()))
    age(make(tmp_path / f"{6:024}-photos.tar.partial"))
    age(make(tmp_path / f"{7:024}.lock"))
    remove_unused(tmp_path)
    assert [int(name[:24]) for name in names(tmp_path)] == [0, 1, 4, 5]
    assert (tmp_path / f"{7:024}.lock").exists()


def test_file_that_is_being_opened_is_kept(tmp_path):
    """The process holds the lock, and has not yet updated the access time."""
    opened = age(make(tmp_path / f"{0:024}.data"))
    with get_lock(tmp_path / f"{0:024}.index.parquet"):
        remove_unused(tmp_path)
        assert opened.exists()
    remove_unused(tmp_path)
    assert not opened.exists()


def test_a_new_download_removes_unused_files_and_keeps_used_ones(tmp_path, cache):
    old, used, new = (put(tmp_path, name) for name in ("old.csv", "used.csv", "new.csv"))
    removed = age(local_file(old, str(cache)))
    kept = age(local_file(used, str(cache)))
    changed = kept.stat().st_mtime_ns
    assert local_file(used, str(cache)) == kept
    fresh = local_file(new, str(cache))
    assert not removed.exists()
    assert names(cache / "downloads") == sorted([kept.name, fresh.name])
    assert kept.stat().st_mtime_ns == changed, "packed files of an archive are found by it"
    assert local_file(old, str(cache)).read_bytes() == b"data"


def test_a_new_packed_file_removes_unused_files_and_keeps_used_ones(tmp_path, cache):
    empty_tar = bytes(10_240)
    paths = [tmp_path / f"{name}.tar.gz" for name in ("old", "used", "new")]
    for level, path in enumerate(paths, 1):
        path.write_bytes(gzip.compress(empty_tar, level))
    packed = cache / "packed"
    open_archive(str(paths[0]), str(cache))
    removed = set(names(packed))
    open_archive(str(paths[1]), str(cache))
    kept = set(names(packed)) - removed
    for path in packed.iterdir():
        age(path)
    times = {name: (packed / name).stat().st_mtime_ns for name in kept}
    open_archive(str(paths[1]), str(cache))
    open_archive(str(paths[2]), str(cache))
    assert len(removed) == len(kept) == 2
    assert removed.isdisjoint(names(packed))
    assert kept < set(names(packed))
    assert {name: (packed / name).stat().st_mtime_ns for name in kept} == times
