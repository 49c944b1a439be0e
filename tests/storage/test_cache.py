"""The cache: what no run uses any more makes room, and nothing that one may be reading."""

import gzip
import os
import time
from pathlib import Path

import pytest

from pets_core import storage
from pets_core.data.sources.archives import open_archive
from pets_core.storage.cache import UNUSED_DAYS, lock_of, sweep
from pets_core.storage.download import local_file


def age(path: Path, days: float = UNUSED_DAYS + 1) -> Path:
    """Make a file look as if nobody had used it for so long."""
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


def test_only_what_was_not_used_for_long_is_swept(tmp_path):
    for number, days in enumerate([0, UNUSED_DAYS - 0.1, UNUSED_DAYS + 0.1, 1000]):
        age(make(tmp_path / f"{number:024}-photos.tar"), days)
    read_lately = age(make(tmp_path / f"{4:024}.data"))
    os.utime(read_lately, (time.time(), read_lately.stat().st_mtime))
    written_lately = age(make(tmp_path / f"{5:024}-photos.tar.partial"))
    os.utime(written_lately, (written_lately.stat().st_atime, time.time()))
    age(make(tmp_path / f"{6:024}-photos.tar.partial"))
    age(make(tmp_path / f"{7:024}.lock"))
    sweep(tmp_path)
    assert [int(name[:24]) for name in names(tmp_path)] == [0, 1, 4, 5]
    assert (tmp_path / f"{7:024}.lock").exists()


def test_what_is_opened_in_this_moment_is_left(tmp_path):
    """It holds the lock, and has not yet noted that it uses the file."""
    opened = age(make(tmp_path / f"{0:024}.data"))
    with lock_of(tmp_path / f"{0:024}.index.parquet"):
        sweep(tmp_path)
        assert opened.exists()
    sweep(tmp_path)
    assert not opened.exists()


def test_a_new_download_makes_room_and_one_in_use_stays(tmp_path, cache):
    old, used, new = (put(tmp_path, name) for name in ("old.csv", "used.csv", "new.csv"))
    gone = age(local_file(old, str(cache)))
    kept = age(local_file(used, str(cache)))
    changed = kept.stat().st_mtime_ns
    assert local_file(used, str(cache)) == kept
    fresh = local_file(new, str(cache))
    assert not gone.exists()
    assert names(cache / "downloads") == sorted([kept.name, fresh.name])
    assert kept.stat().st_mtime_ns == changed, "an archive's packed files go by it"
    assert local_file(old, str(cache)).read_bytes() == b"data"


def test_a_new_packed_file_makes_room_and_one_in_use_stays(tmp_path, cache):
    empty_tar = bytes(10_240)
    paths = [tmp_path / f"{name}.tar.gz" for name in ("old", "used", "new")]
    for level, path in enumerate(paths, 1):
        path.write_bytes(gzip.compress(empty_tar, level))
    packed = cache / "packed"
    open_archive(str(paths[0]), str(cache))
    gone = set(names(packed))
    open_archive(str(paths[1]), str(cache))
    kept = set(names(packed)) - gone
    for path in packed.iterdir():
        age(path)
    marks = {name: (packed / name).stat().st_mtime_ns for name in kept}
    open_archive(str(paths[1]), str(cache))
    open_archive(str(paths[2]), str(cache))
    assert len(gone) == len(kept) == 2
    assert gone.isdisjoint(names(packed))
    assert kept < set(names(packed))
    assert {name: (packed / name).stat().st_mtime_ns for name in kept} == marks
