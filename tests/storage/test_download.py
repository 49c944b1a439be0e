"""Downloads: retried, resumed, verified and cached."""

import hashlib
import io
import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pets_core import storage
from pets_core.errors import PetsError
from pets_core.storage import download
from pets_core.storage.download import forget_download, local_file

BODY = bytes(range(256)) * 4000  # about 1 MB
BUFFERED = 10_000  # bytes: more than a write buffer holds back


class Site(BaseHTTPRequestHandler):
    """Server of one file at /photo.jpg; the class configures its failures and has a log."""

    body = BODY
    etag: str | None = "1"
    modified: str | None = None
    ranges = True
    promised: int | None = None
    """Content-Length, if it differs from the body's length."""
    cuts: list[int]
    """Number of bytes after which each of the next responses is cut."""
    resets = False
    """Whether a cut response ends with a connection reset instead of a normal close."""
    faults: dict[str, list[int]]
    """Statuses of the next responses to a method."""
    log: list[tuple[str, int, int]]
    """For each request: method, first byte requested, bytes on disk at that time."""
    cache: Path

    def do_HEAD(self):
        self._head()

    def do_GET(self):
        start = self._head()
        if start is None:
            return
        cut = self.cuts.pop(0) if self.cuts else None
        self.wfile.write(self.body[start:][:cut])
        if cut is not None:
            self._wait_for(start + cut - BUFFERED)
            if self.resets:
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    def _head(self) -> int | None:
        requested = self.headers.get("Range", "bytes=0-")
        first = int(requested.removeprefix("bytes=").split("-")[0])
        self.log.append((self.command, first, self._on_disk()))
        status = self.faults[self.command].pop(0) if self.faults[self.command] else 200
        if status == 200 and self.path.partition("?")[0] != "/photo.jpg":
            status = 404
        start = first if self.ranges and self._same_version() else 0
        self.send_response(206 if start and status == 200 else status)
        length = 0 if status != 200 else (self.promised or len(self.body)) - start
        self.send_header("Content-Length", str(length))
        if self.etag:
            self.send_header("ETag", self.etag)
        if self.modified:
            self.send_header("Last-Modified", self.modified)
        self.end_headers()
        return start if status == 200 else None

    def _same_version(self) -> bool:
        return self.headers.get("If-Range") in (None, self.etag)

    def _on_disk(self) -> int:
        return sum(path.stat().st_size for path in self.cache.rglob("*.partial"))

    def _wait_for(self, num_bytes: int) -> None:
        """Wait until the client has the sent bytes, which it must not request again."""
        self.wfile.flush()
        deadline = time.monotonic() + 60
        while self._on_disk() < num_bytes and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(0.02)


@pytest.fixture
def site(tmp_path, serve):
    class Own(Site):
        cuts, log, cache = [], [], tmp_path
        faults = {"HEAD": [], "GET": []}  # noqa: RUF012

    Own.url = f"{serve(Own)}/photo.jpg"
    return Own


@pytest.fixture(autouse=True)
def _no_long_waits(monkeypatch):
    monkeypatch.setattr(download, "_BACKOFF_SECONDS", 0.01)
    monkeypatch.setattr(download, "_MAX_BACKOFF_SECONDS", 0.01)


def gets(site) -> list[tuple[int, int]]:
    return [(start, on_disk) for method, start, on_disk in site.log if method == "GET"]


def kept(folder: Path) -> list[str]:
    return [p.name for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock"]


def digest(algorithm: str, data: bytes = BODY) -> str:
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def test_download_is_cached(site, tmp_path):
    first = local_file(site.url, str(tmp_path))
    assert first.read_bytes() == BODY
    assert first.is_relative_to(tmp_path)
    assert first.name.endswith("-photo.jpg")
    assert local_file(site.url, str(tmp_path)) == first
    assert len(gets(site)) == 1
    assert kept(tmp_path) == [first.name]


def test_concurrent_calls_download_once(site, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: local_file(site.url, str(tmp_path)), range(4)))
    assert len(set(paths)) == len(gets(site)) == 1


@pytest.mark.parametrize("change", [{"etag": "2"}, {"modified": "Tue, 02 Jan 2024 00:00:00 GMT"}])
def test_changed_file_of_the_same_size_is_downloaded_again(site, tmp_path, change):
    site.etag, site.modified = None, "Mon, 01 Jan 2024 00:00:00 GMT"
    first = local_file(site.url, str(tmp_path))
    site.body = BODY[::-1]
    for name, value in change.items():
        setattr(site, name, value)
    second = local_file(site.url, str(tmp_path))
    assert second != first
    assert second.read_bytes() == BODY[::-1]


@pytest.mark.parametrize("resets", [False, True])
def test_cut_download_requests_only_the_missing_bytes(site, tmp_path, resets):
    site.cuts, site.resets = [400_000, 300_000], resets
    assert local_file(site.url, str(tmp_path)).read_bytes() == BODY
    assert len(gets(site)) == 3
    assert all(start == on_disk for start, on_disk in gets(site))
    assert gets(site)[1][0] >= 400_000 - BUFFERED
    assert gets(site)[2][0] >= 700_000 - 2 * BUFFERED


def test_later_call_resumes_a_failed_download(site, tmp_path):
    site.cuts = [100_000] * download._ATTEMPTS
    with pytest.raises(PetsError, match="the next run resumes it"):
        local_file(site.url, str(tmp_path))
    (name,) = kept(tmp_path)
    assert name.endswith("-photo.jpg.partial")
    num_kept = site._on_disk(site)
    assert num_kept >= 100_000 * download._ATTEMPTS - BUFFERED * download._ATTEMPTS
    assert local_file(site.url, str(tmp_path)).read_bytes() == BODY
    assert gets(site)[download._ATTEMPTS :] == [(num_kept, num_kept)]


@pytest.mark.parametrize("cuts", [[], [400_000]])
def test_server_without_ranges_is_read_from_the_start(site, tmp_path, cuts):
    """A large file needs no ranges if nothing fails."""
    site.ranges, site.cuts, site.body = False, [*cuts], BODY * 3
    assert local_file(site.url, str(tmp_path)).read_bytes() == BODY * 3
    assert len(gets(site)) == 1 + len(cuts)


def test_two_versions_are_not_mixed(site, tmp_path):
    """If the file changes during the download, its first part is downloaded again."""
    wait_for = Site._wait_for

    def change(handler, num_bytes):
        wait_for(handler, num_bytes)
        site.body, site.etag = BODY[::-1], "2"

    site._wait_for, site.cuts = change, [400_000]
    assert local_file(site.url, str(tmp_path)).read_bytes() == BODY[::-1]


@pytest.mark.parametrize("content", [BODY, BODY + b"x"])
def test_partial_file_of_a_killed_call_is_completed_or_downloaded_again(site, tmp_path, content):
    site.cuts = [100_000] * download._ATTEMPTS
    with pytest.raises(PetsError):
        local_file(site.url, str(tmp_path))
    (partial,) = tmp_path.rglob("*.partial")
    partial.write_bytes(content)
    site.log.clear()
    assert local_file(site.url, str(tmp_path)).read_bytes() == BODY
    assert len(gets(site)) == (content != BODY)


@pytest.mark.parametrize("promised", [1, 50_000])
def test_body_shorter_than_content_length_is_an_error(site, tmp_path, promised):
    site.promised = len(BODY) + promised
    with pytest.raises(PetsError, match=r"photo\.jpg: the download failed"):
        local_file(site.url, str(tmp_path))
    assert [name for name in kept(tmp_path) if not name.endswith(".partial")] == []
    assert len(gets(site)) == download._ATTEMPTS


@pytest.mark.parametrize("status", [500, 503, 429])
@pytest.mark.parametrize("faults", [{"HEAD": 3, "GET": 3}, {"GET": 3}, {"HEAD": 3}])
def test_busy_server_is_retried(site, tmp_path, status, faults):
    for method, count in faults.items():
        site.faults[method] = [status] * count
    assert local_file(site.url, str(tmp_path)).read_bytes() == BODY


def test_retries_of_a_busy_server_are_limited(site, tmp_path):
    site.faults = {"HEAD": [503] * 100, "GET": [503] * 100}
    with pytest.raises(PetsError, match=r"cannot be reached: .*503"):
        local_file(site.url, str(tmp_path))
    assert len(site.log) == 2 * download._ATTEMPTS


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_refused_request_is_not_retried(site, tmp_path, status):
    site.faults = {"HEAD": [status] * 9, "GET": [status] * 9}
    message = "does not exist" if status in (404, 410) else f"cannot be reached.*{status}"
    with pytest.raises(PetsError, match=message):
        local_file(site.url, str(tmp_path))
    assert [method for method, *_ in site.log] == ["HEAD", "GET"]


@pytest.mark.parametrize("status", [403, 404])
def test_refused_download_is_not_retried(site, tmp_path, status):
    site.faults["GET"] = [status] * 9
    with pytest.raises(PetsError, match="the download failed"):
        local_file(site.url, str(tmp_path))
    assert len(gets(site)) == 1


@pytest.mark.parametrize("algorithm", ["md5", "sha1", "sha256", "sha512"])
def test_a_checksum_is_verified(site, tmp_path, algorithm):
    right = digest(algorithm)
    with pytest.raises(PetsError, match=rf"photo\.jpg: its {algorithm} is .*, expected 00"):
        local_file(site.url, str(tmp_path), f"{algorithm}:00")
    assert kept(tmp_path) == []
    name, _, value = right.partition(":")
    assert local_file(site.url, str(tmp_path), f"{name}:{value.upper()}").read_bytes() == BODY


def test_a_cached_download_is_verified(site, tmp_path):
    local_file(site.url, str(tmp_path))
    with pytest.raises(PetsError, match="expected 00"):
        local_file(site.url, str(tmp_path), "md5:00")


def test_a_resumed_download_is_verified_as_a_whole(site, tmp_path):
    site.cuts = [400_000]
    assert local_file(site.url, str(tmp_path), digest("sha256")).read_bytes() == BODY
    assert len(gets(site)) == 2


def test_a_local_file_is_verified_and_kept(tmp_path):
    (tmp_path / "a").write_bytes(BODY)
    assert local_file(str(tmp_path / "a"), str(tmp_path / "cache"), digest("md5")).exists()
    with pytest.raises(PetsError, match="expected 00"):
        local_file(str(tmp_path / "a"), str(tmp_path / "cache"), "md5:00")
    assert kept(tmp_path) == ["a"]


@pytest.mark.parametrize("size", [0, 1])
def test_very_small_files_are_downloaded(site, tmp_path, size):
    site.body = BODY[:size]
    assert local_file(site.url, str(tmp_path)).read_bytes() == BODY[:size]


def test_signed_url_gives_a_short_file_name(site, tmp_path):
    path = local_file(f"{site.url}?signature={'x' * 400}", str(tmp_path))
    assert path.name.endswith("-photo.jpg")
    assert path.read_bytes() == BODY


def test_missing_server_is_a_clear_error(tmp_path):
    with pytest.raises(PetsError, match=r":9/photo\.jpg cannot be reached"):
        local_file("http://127.0.0.1:9/photo.jpg", str(tmp_path))


def test_interrupted_read_of_a_store_is_resumed(tmp_path, monkeypatch):
    """Stores other than HTTP are resumed by seeking."""
    url, reads = f"memory://{tmp_path.name}/photo.jpg", []
    storage.write_bytes(url, BODY)

    class Unsteady(io.BytesIO):
        def read(self, size=-1):
            reads.append(self.tell())
            if len(reads) % 2 == 0:
                raise ConnectionResetError
            return super().read(300_000)

    monkeypatch.setattr(MemoryFileSystem, "_open", lambda *_, **__: Unsteady(BODY))
    path = local_file(url, str(tmp_path))
    assert path.read_bytes() == BODY
    assert reads == [0, 300_000, 300_000, 600_000, 600_000, 900_000, 900_000, len(BODY)]


@pytest.mark.parametrize("num_short", [1, 100])
def test_truncated_read_of_a_store_is_detected(tmp_path, monkeypatch, num_short):
    url, opens = f"memory://{tmp_path.name}/photo.jpg", []
    storage.write_bytes(url, BODY)

    def open_truncated(*_, **__):
        opens.append(len(opens))
        return io.BytesIO(BODY[:-1] if len(opens) <= num_short else BODY)

    monkeypatch.setattr(MemoryFileSystem, "_open", open_truncated)
    if num_short == 1:
        assert local_file(url, str(tmp_path)).read_bytes() == BODY
    else:
        with pytest.raises(PetsError, match="received 1023999 of 1024000 bytes"):
            local_file(url, str(tmp_path))


def test_a_local_file_is_not_copied(tmp_path):
    (tmp_path / "a").write_bytes(b"x")
    assert local_file(str(tmp_path / "a"), str(tmp_path / "cache")) == tmp_path / "a"
    assert not (tmp_path / "cache").exists()


def test_folder_or_unknown_store_is_a_clear_error(tmp_path):
    with pytest.raises(PetsError, match="does not exist"):
        local_file(str(tmp_path), str(tmp_path))
    with pytest.raises(PetsError, match="nostore"):
        local_file("nostore://bucket/file", str(tmp_path))


def test_forget_download_removes_only_downloads(site, tmp_path):
    own = tmp_path / "own.jpg"
    own.write_bytes(BODY)
    forget_download(own, str(tmp_path))
    assert own.exists()
    forget_download(local_file(site.url, str(tmp_path)), str(tmp_path))
    assert kept(tmp_path) == ["own.jpg"]
    local_file(site.url, str(tmp_path))
    assert len(gets(site)) == 2


def test_slow_failures_are_retried_for_a_limited_time():
    """gcsfs fails only after half a minute of its own retries."""
    calls = []

    def fail():
        calls.append(1)
        raise ConnectionError

    with pytest.raises(ConnectionError):
        download.call_with_retries(fail, last_attempt_seconds=0)
    assert len(calls) == 2
