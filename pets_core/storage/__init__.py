"""Files on any fsspec store: whole or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, unquote

import fsspec
from fsspec.core import url_to_fs

from pets_core.errors import PetsError, explain_full_disk, tellable, telling

__all__ = [
    "CountingWriter",
    "absolute",
    "below",
    "check_writable",
    "exists",
    "filesystem",
    "find_files",
    "is_local",
    "is_url",
    "join",
    "last_change",
    "list_folder",
    "open_read",
    "printable",
    "read_bytes",
    "remove",
    "when_changed",
    "without_query",
    "write_bytes",
    "writing",
]


_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "abfs": "azure", "az": "azure"}
"""The extra that brings the driver of a kind of store."""


_CHAINING = frozenset(
    {
        "blockcache",
        "cached",
        "dir",
        "filecache",
        "libarchive",
        "reference",
        "simplecache",
        "tar",
        "zip",
    }
)
"""fsspec's protocols that stand before the place of another file system."""
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(::[A-Za-z][A-Za-z0-9+.-]*)*://")
_FILE_URL = re.compile(r"file:(?://(?:localhost)?)?(/.*)", re.IGNORECASE | re.DOTALL)


def is_url(place: str) -> bool:
    """Whether a place is a URL, as "s3://bucket", or a chain, as "simplecache::s3://bucket".

    A file URL is a local path. Any other text is one too, whatever characters it holds.
    """
    return bool(_URL.match(place)) and not _FILE_URL.match(place)


def absolute(url: str) -> str:
    """Return a local path absolute, without `~` and without `file://`, and any other URL as it is.

    An absolute path means the same to every process, whatever its working directory.
    """
    if is_url(url):
        return url
    if (file_url := _FILE_URL.match(url)) is not None:
        return os.path.normpath(unquote(file_url[1]))
    # Path.expanduser raises for a name such as ~draft.jpg; ".." is to go, links to stay.
    return os.path.abspath(os.path.expanduser(url))  # noqa: PTH100, PTH111


def join(root: str, *parts: str) -> str:
    """Join a root path or URL and parts with single slashes."""
    return "/".join([root.rstrip("/"), *(p.strip("/") for p in parts)])


def below(url: str, path: str) -> tuple[Any, str]:
    """The fsspec file system of the folder at `url`, and the place there of a file in the folder.

    Unlike a part of a URL, `path` may hold any character.
    """
    fs, root = filesystem(url)
    is_web = url.startswith(("http://", "https://"))
    return fs, f"{root.rstrip('/')}/{quote(path) if is_web else path}"


def printable(text: str) -> str:
    r"""A file's name as valid Unicode: bytes that are not UTF-8 are escaped, as in \xe4."""
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")


def without_query(url: str) -> str:
    """A web URL without what comes after "?": of a signed one, a secret; any other as it is."""
    return url.split("?", 1)[0] if url.startswith(("http://", "https://")) else url


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of `url`, and the path on it.

    Raises:
        PetsError: No such kind of store is known, or its driver is not installed.
    """
    if not is_url(url):
        return fsspec.filesystem("file", use_listings_cache=False), absolute(url)
    try:
        # A listing kept from before hides what other processes have written since.
        head, colons, rest = (url, "", "") if _is_chain(url) else url.partition("::")
        fs, path = url_to_fs(head, use_listings_cache=False)
        return fs, path + colons + rest
    except ImportError as error:
        extra = _EXTRAS.get(url.split("://")[0])
        remedy = f": pip install 'pets-pipeline[{extra}]'" if extra else ""
        raise PetsError(f"{url}: {error}{remedy}") from error
    except ValueError as error:
        raise PetsError(f"{url}: {error}") from error


def _is_chain(url: str) -> bool:
    """Whether "::" chains file systems; anywhere else it belongs to a file's name."""
    return "::" in url and url.split(":", 1)[0] in _CHAINING


def exists(url: str) -> bool:
    """Whether a file or folder lies at `url`."""
    fs, path = filesystem(url)
    return bool(fs.exists(path))


def list_folder(url: str) -> dict[str, dict[str, Any]]:
    """What lies in a folder, by name: fsspec's `info` of each; nothing where no folder is.

    Unlike fsspec's `glob` and `find`, which take a folder they may not list for an empty one, this
    raises what the store raises.
    """
    fs, path = filesystem(url)
    try:
        listed = fs.ls(path, detail=True)
    except FileNotFoundError:
        return {}
    entries = {info["name"].rstrip("/").rsplit("/", 1)[-1]: info for info in listed}
    # An object store may list the folder itself.
    entries.pop("", None)
    return {name: info for name, info in entries.items() if info["name"].rstrip("/") != path}


def find_files(url: str) -> dict[str, dict[str, Any]]:
    """Every file below a folder by its path in it: fsspec's `info` of each.

    A folder that may not be listed is passed over: what is not found here may yet be there.
    """
    fs, root = filesystem(url)
    found = fs.find(root, detail=True)
    return {path.removeprefix(root.rstrip("/") + "/"): info for path, info in found.items()}


def when_changed(info: Mapping[str, Any]) -> Any:
    """When a file was last changed, as its store tells it: seconds, text or a datetime, or None."""
    keys = ("mtime", "LastModified", "Last-Modified", "last_modified", "updated", "modified",
            "created")  # fmt: skip
    return next((info[key] for key in keys if info.get(key)), None)


def last_change(info: Mapping[str, Any]) -> float:
    """When a file was last changed, seconds since 1970; infinite where the store does not tell."""
    value = when_changed(info)
    if isinstance(value, datetime):
        return value.timestamp()
    if isinstance(value, str):
        return datetime.fromisoformat(value).timestamp()
    return float("inf") if value is None else float(value)


def open_read(url: str) -> IO[bytes]:
    """Open for reading, binary and seekable.

    Raises:
        PetsError: Nothing lies there, or it cannot be read.
    """
    fs, path = filesystem(url)
    try:
        return fs.open(path, "rb")  # type: ignore[no-any-return]
    except FileNotFoundError as error:
        raise PetsError(f"{url} does not exist") from tellable(error)
    except IsADirectoryError as error:
        raise PetsError(f"{url} is a folder, not a file") from tellable(error)
    except OSError as error:
        raise PetsError(f"{url} cannot be read: {error}") from tellable(error)


def read_bytes(url: str) -> bytes:
    """Read a whole file; errors as `open_read`."""
    with open_read(url) as file, telling(f"{url} cannot be read"):
        return file.read()


@contextmanager
def writing(url: str, setting: str = "store") -> Iterator[CountingWriter]:
    """Open a file for writing that appears at `url` whole, when the block ends well, or not at all.

    A local file is written under a hidden name beside its own and renamed; an object store shows an
    object only when its upload is closed, and a failed upload is given up.

    Args:
        url: The file.
        setting: What to set to another place where the disk is full.

    Raises:
        PetsError: The disk is full or read-only.
    """
    with explain_full_disk(url, setting), _writing(url) as file:
        yield file


@contextmanager
def _writing(url: str) -> Iterator[CountingWriter]:
    fs, path = filesystem(url)
    fs.makedirs(fs._parent(path), exist_ok=True)
    local = is_local(fs)
    # These two show a file from its first byte on.
    beside = local or "memory" in _protocols(fs)
    folder, slash, name = path.rpartition("/")
    # Readers of a folder of Parquet files pass over names that begin with a dot.
    target = f"{folder}{slash}.{name}.partial-{uuid.uuid4().hex[:8]}" if beside else path
    raw = fs.open(target, "wb")
    try:
        yield CountingWriter(raw)
        if local:
            raw.flush()
            os.fsync(raw.fileno())
        raw.close()
        if local:
            Path(target).replace(path)
        elif beside:
            # `mv` takes *, ? and [ in a name for a pattern.
            fs.cp_file(target, path)
            fs.rm_file(target)
    except BaseException:
        _give_up(fs, raw, target, beside)
        raise


def _give_up(fs: Any, raw: Any, target: str, beside: bool) -> None:
    if beside:
        try:
            # On a full disk closing, which flushes, fails as well.
            with contextlib.suppress(OSError):
                raw.close()
        finally:
            if fs.exists(target):
                fs.rm(target)
    else:
        # Closing, also when it is collected, would complete the upload with what came so far.
        raw.closed = True
        # What stopped the upload may keep the store from being told, too.
        with contextlib.suppress(Exception):
            raw.discard()


def write_bytes(url: str, data: bytes, setting: str = "store") -> None:
    """Write a small file whole or not at all; arguments as `writing`."""
    with writing(url, setting) as file:
        file.write(data)


def remove(url: str) -> None:
    """Remove a file or a folder with all it holds; nothing there is no error."""
    fs, path = filesystem(url)
    if is_local(fs):
        if fs.exists(path):
            fs.rm(path, recursive=True)
        return
    # There, `rm` takes *, ? and [ in a name for a pattern.
    for file in [path] if fs.isfile(path) else fs.find(path):
        fs.rm_file(file)


def check_writable(url: str, setting: str = "store") -> None:
    """Prove that files can be written under `url`, before any work starts.

    Raises:
        PetsError: A probe file cannot be written there.
    """
    probe = join(url, f".write-probe-{uuid.uuid4().hex[:8]}")
    try:
        write_bytes(probe, b"")
        remove(probe)
    except Exception as error:
        raise PetsError(
            f"{setting} = {url}: cannot be written ({type(error).__name__}: {error}). "
            f"Set {setting} to a place you may write to."
        ) from error


def is_local(fs: Any) -> bool:
    """Whether a file system is this machine's own."""
    return "file" in _protocols(fs)


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


class CountingWriter:
    """A write-only binary file whose place is the bytes written; closing it completes nothing."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._num_bytes = 0
        self.closed = False

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self._num_bytes += view.nbytes
        self._file.write(view)
        return view.nbytes

    def tell(self) -> int:
        return self._num_bytes

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self.closed = True

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False
