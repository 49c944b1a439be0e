"""Atomic files on disk, in memory, in an object store and over HTTP."""

import errno
import gc
import math
import os
import uuid
import zipfile
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import fsspec
import pytest
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem
from hypothesis import given
from hypothesis import strategies as st

from pets_core import storage
from pets_core.errors import PetsError


class ObjectStore(AbstractFileSystem):
    """Object store that, like S3, shows an object only when its upload is complete."""

    protocol = "objects"
    cachable = False  # codespell:ignore cachable
    held: dict[str, bytes] = {}  # noqa: RUF012 - one store for all

    def makedirs(self, path, exist_ok=False):
        pass

    def info(self, path, **_):
        if self._strip_protocol(path) not in self.held:
            raise FileNotFoundError(path)
        data = self.held[self._strip_protocol(path)]
        return {"name": path, "size": len(data), "type": "file"}

    def _open(self, path, mode="rb", **keywords):
        return ObjectFile(self, path, mode, **keywords | {"block_size": 8})

    def ls(self, path, detail=True, **_):
        found = [self.info(name) for name in self.held if name.startswith(f"{path}/")]
        return found if detail else [info["name"] for info in found]

    def rm_file(self, path):
        del self.held[path]


class ObjectFile(AbstractBufferedFile):
    def _initiate_upload(self):
        self.parts = []

    def _upload_chunk(self, final=False):
        self.buffer.seek(0)
        self.parts.append(self.buffer.read())
        if final:
            self.fs.held[self.path] = b"".join(self.parts)
        return True

    def _fetch_range(self, start, end):
        return self.fs.held[self.path][start:end]


@pytest.fixture(params=["file", "memory", "objects"])
def root(request, tmp_path) -> str:
    if request.param == "file":
        return str(tmp_path / "root")
    fsspec.register_implementation("objects", ObjectStore, clobber=True)
    return f"{request.param}://{uuid.uuid4().hex}"


def stored_names(root: str) -> list[str]:
    fs, path = storage.filesystem(root)
    if isinstance(fs, ObjectStore):
        return [name for name in fs.held if name.startswith(path)]
    return fs.find(path)


def fail_during_write(url: str, data: bytes, error: BaseException) -> None:
    with storage.writing(url) as file:
        file.write(data)
        raise error


def test_a_written_file_is_read_back(root):
    url = storage.join(root, "a/b", "/c.bin")
    with storage.writing(url) as file:
        file.write(b"one ")
        file.write(memoryview(b"and another"))
    assert storage.exists(url)
    assert storage.read_bytes(url) == b"one and another"
    assert file.tell() == 15
    assert len(stored_names(root)) == 1
    storage.write_bytes(url, b"short")
    assert storage.read_bytes(url) == b"short"
    storage.remove(url)
    assert not storage.exists(url)
    storage.remove(url)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("num_bytes", [0, 3, 100])
def test_failed_write_leaves_no_file(root, error, num_bytes):
    url = storage.join(root, "file.bin")
    with pytest.raises(error, match="half way"):
        fail_during_write(url, b"x" * num_bytes, error("half way"))
    assert stored_names(root) == []


@pytest.mark.parametrize("num_bytes", [0, 3, 60 << 20])
def test_failed_upload_leaves_nothing_in_a_bucket(bucket, num_bytes):
    """The largest size exceeds the buffer of any driver, so that parts are uploaded."""
    url = storage.join(bucket.url, "file.bin")
    with pytest.raises(KeyboardInterrupt):
        fail_during_write(url, b"x" * num_bytes, KeyboardInterrupt())
    assert storage.list_folder(bucket.url) == {}


def test_upload_that_cannot_be_aborted_is_not_completed(monkeypatch):
    """The first error is raised, not the error of the abort."""

    def unreachable(_file):
        raise ConnectionError("the store is unreachable")

    monkeypatch.setattr(ObjectFile, "discard", unreachable)
    fsspec.register_implementation("objects", ObjectStore, clobber=True)
    with pytest.raises(KeyboardInterrupt):
        fail_during_write("objects://aborted/file.bin", b"x" * 100, KeyboardInterrupt())
    gc.collect()
    assert stored_names("objects://aborted") == []


@pytest.mark.parametrize("name", ["photo[1].jpg", "a*.jpg", "a?.jpg", "50%25.jpg", "# å b.jpg"])
def test_names_are_taken_literally_in_a_bucket(bucket, name):
    folder = storage.join(bucket.url, "folder")
    for other in (name, "aa.jpg", "photo1.jpg"):
        storage.write_bytes(storage.join(folder, other), other.encode())
    assert set(storage.list_folder(folder)) == {name, "aa.jpg", "photo1.jpg"}
    assert storage.read_bytes(storage.join(folder, name)) == name.encode()
    storage.remove(storage.join(folder, name))
    assert set(storage.list_folder(folder)) == {"aa.jpg", "photo1.jpg"}
    storage.remove(folder)
    assert not storage.exists(folder)


def test_failed_write_keeps_the_earlier_file(root):
    url = storage.join(root, "file.bin")
    storage.write_bytes(url, b"before")
    with pytest.raises(RuntimeError):
        fail_during_write(url, b"x" * 100, RuntimeError())
    assert storage.read_bytes(url) == b"before"
    assert len(stored_names(root)) == 1


def test_partly_written_file_has_another_name(tmp_path):
    """After a kill, the file's own name never refers to a part of it."""
    url = tmp_path / "file.bin"
    with storage.writing(str(url)) as file:
        file.write(b"half")
        file.flush()
        assert not url.exists()
        (partial,) = tmp_path.iterdir()
        assert partial.name.startswith(".file.bin.partial-")
    assert [path.name for path in tmp_path.iterdir()] == ["file.bin"]


def test_file_is_synced_before_it_is_renamed(tmp_path, monkeypatch):
    """Otherwise a power failure may keep the name and lose the content."""
    url, synced = tmp_path / "file.bin", []
    sync = os.fsync

    def record(descriptor):
        synced.append(url.exists())
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    storage.write_bytes(str(url), b"data")
    assert synced == [False]
    assert url.exists()


def test_concurrent_writers_do_not_mix(tmp_path):
    url = str(tmp_path / "file.bin")
    with storage.writing(url) as one, storage.writing(url) as other:
        one.write(b"1111")
        other.write(b"2222")
    assert Path(url).read_bytes() in (b"1111", b"2222")
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["photo[1].jpg", "a*b.jpg", "what?.jpg", "50%.jpg", "å b.jpg"])
def test_names_are_taken_literally(tmp_path, name):
    url = str(tmp_path / name)
    storage.write_bytes(url, b"x")
    assert storage.read_bytes(url) == b"x"


ODD_NAMES = ["~notes", "notes::old", "a::b::c", "zip::old", "s3:old", "50%41", "what?#1", "file:x"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_location_without_a_scheme_is_a_path(tmp_path, monkeypatch, name):
    """Regression test: a store named notes::old overwrote the file notes."""
    neighbour = tmp_path / (name.split(":")[0] if ":" in name else "neighbour")
    neighbour.write_bytes(b"mine")
    for location in (str(tmp_path / name), name):
        monkeypatch.chdir(tmp_path)
        assert not storage.is_url(location)
        storage.write_bytes(storage.join(location, "photo 12::30.jpg"), b"x")
        assert (tmp_path / name / "photo 12::30.jpg").read_bytes() == b"x"
        fs, where = storage.resolve_file(location, "photo 12::30.jpg")
        assert fs.cat_file(where) == b"x"
        storage.remove(location)
    assert neighbour.read_bytes() == b"mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == [neighbour.name]


@given(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1))
def test_any_name_is_a_path_below_a_folder(name):
    folder = "/somewhere/photos"
    fs, where = storage.resolve_file(folder, f"a/{name}")
    assert storage.is_local(fs)
    assert where == f"{folder}/a/{name}"
    assert not storage.is_url(f"{folder}/{name}")


@pytest.mark.parametrize(
    ("text", "stripped"),
    [
        ("https://me:secret@host/a@b", "https://host/a@b"),
        ("http://me:p@ss@host", "http://host"),
        ("me:secret@host:5000", "host:5000"),
        ("https://host:80?x=a@b", "https://host:80?x=a@b"),
        ("see s3://bucket and photos@champion", "see s3://bucket and photos@champion"),
    ],
)
def test_passwords_of_urls_are_removed(text, stripped):
    assert storage.strip_password(text) == stripped


@pytest.mark.parametrize(
    ("url", "path"),
    [("file:///tmp/my%20photos", "/tmp/my photos"), ("file://localhost/a%23b", "/a#b"),
     ("FILE:///a", "/a"), ("file:/a%25", "/a%"), ("file:///a/../b?c#d", "/b?c#d")],
)  # fmt: skip
def test_a_file_url_is_a_path(url, path):
    assert not storage.is_url(url)
    assert storage.absolute(url) == path
    assert storage.filesystem(url)[1] == path


@pytest.mark.parametrize("name", ["12::30.jpg", "a#b.jpg", "a?b.jpg", "50%41.jpg"])
def test_special_characters_in_names_of_an_object_store(tmp_path, name):
    root = f"memory://{tmp_path.name}"
    storage.write_bytes(storage.join(root, name), b"x")
    fs, where = storage.resolve_file(root, name)
    assert fs.cat_file(where) == storage.read_bytes(storage.join(root, name)) == b"x"
    assert list(storage.list_folder(root)) == [name]


def test_file_systems_may_be_chained(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("in/a.txt", b"x")
    for url in (f"zip://in/a.txt::{tmp_path}/a.zip", f"zip://in/a.txt::file://{tmp_path}/a.zip"):
        assert storage.is_url(url)
        fs, where = storage.filesystem(url)
        assert fs.cat_file(where) == b"x"
    storage.write_bytes(f"memory://{tmp_path.name}/b.txt", b"y")
    cached = f"simplecache::memory://{tmp_path.name}/b.txt"
    assert storage.absolute(cached) == cached
    assert storage.read_bytes(cached) == b"y"


def test_names_that_are_not_utf8_are_printable():
    name = b"K\xe4tzchen.jpg".decode(errors="surrogateescape")
    assert storage.printable(name) == "K\\xe4tzchen.jpg"
    assert storage.printable("Kätzchen") == "Kätzchen"


def test_absolute_expands_relative_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert storage.absolute("a/b") == str(tmp_path / "a/b")
    assert storage.absolute("~/a") == "/home/someone/a"
    assert storage.absolute("s3://bucket/a") == "s3://bucket/a"


def test_missing_file_is_a_clear_error(root):
    with pytest.raises(PetsError, match="does not exist"):
        storage.read_bytes(storage.join(root, "none.bin"))


def test_reading_a_folder_is_an_error(tmp_path):
    with pytest.raises(PetsError, match="is a folder"):
        storage.read_bytes(str(tmp_path))


def test_unknown_kind_of_store_is_a_clear_error():
    for act in (storage.exists, storage.read_bytes, storage.check_writable, storage.remove):
        with pytest.raises(PetsError, match="nostore"):
            act("nostore://bucket/file")


def test_write_check_leaves_a_store_empty(root):
    storage.check_writable(root)
    assert stored_names(root) == []


def test_store_that_is_not_writable_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for bad in (tmp_path / "file" / "store", Path("/proc/store")):
        with pytest.raises(PetsError, match=r"cannot be written.*Set store to"):
            storage.check_writable(str(bad))


class Site(BaseHTTPRequestHandler):
    """Server of one file; the class sets its content and the number of bytes sent."""

    body = b""
    sent: int | None = None

    def do_HEAD(self):
        self._head()

    def do_GET(self):
        if self._head():
            self.wfile.write(self.body[: self.sent])

    def _head(self) -> bool:
        found = self.path == "/photo.jpg"
        self.send_response(200 if found else 404)
        self.send_header("Content-Length", str(len(self.body) if found else 0))
        self.end_headers()
        return found


@pytest.fixture
def site(serve):
    class Own(Site):
        body = bytes(range(256)) * 400

    Own.url = serve(Own)
    return Own


def test_truncated_response_is_a_clear_error(site):
    site.sent = 50_000
    with pytest.raises(PetsError, match="photo"):
        storage.read_bytes(f"{site.url}/photo.jpg")


def test_404_is_a_clear_error(site):
    with pytest.raises(PetsError, match="does not exist"):
        storage.read_bytes(f"{site.url}/none.jpg")


def test_missing_server_is_a_clear_error():
    with pytest.raises(PetsError, match=":9"):
        storage.read_bytes("http://127.0.0.1:9/photo.jpg")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_error_on_a_full_disk_names_path_and_setting_and_keeps_the_old_file(
    tmp_path, monkeypatch, number
):
    url = str(tmp_path / "a.bin")
    storage.write_bytes(url, b"before")

    def fsync(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(
        PetsError, match=r"a\.bin: cannot be written: .*set cache_dir to another"
    ) as e:
        storage.write_bytes(url, b"after", "cache_dir")
    assert "Data stored earlier is intact" in str(e.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]
    assert Path(url).read_bytes() == b"before"


def test_other_errors_of_a_write_are_raised_unchanged(tmp_path):
    with pytest.raises(KeyError), storage.writing(str(tmp_path / "a.bin")):
        raise KeyError("mine")


@pytest.mark.parametrize(
    ("info", "seconds"),
    [
        ({"mtime": 1623327630.5}, 1623327630.5),
        ({"LastModified": datetime(2021, 6, 10, 12, 20, 30, tzinfo=UTC)}, 1623327630),
        ({"updated": "2021-06-10T12:20:30.250Z"}, 1623327630.25),
        # FTP, with the command MLSD and without it.
        ({"modify": "20210610122030"}, 1623327630),
        ({"modify": "20210610122030.123"}, 1623327630),
        ({"modify": "Jun 10 12:20"}, math.inf),
        # WebHDFS.
        ({"modificationTime": 1623327630500}, 1623327630.5),
        ({"size": 3}, math.inf),
    ],
)
def test_modification_times_of_all_stores_are_read(info, seconds):
    assert storage.modified_time(info) == seconds
