"""Files on any fsspec store, written atomically."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, unquote

import fsspec
from fsspec.core import url_to_fs

from pets_core.errors import PetsError, explain_full_disk, safe_cause, without_queries, wrap_errors

__all__ = [
    "CountingWriter",
    "absolute",
    "check_writable",
    "exists",
    "filesystem",
    "find_files",
    "is_chain",
    "is_http",
    "is_local",
    "is_url",
    "join",
    "list_folder",
    "modified_time",
    "open_read",
    "printable",
    "raw_modified_time",
    "read_bytes",
    "remove",
    "resolve_file",
    "strip_password",
    "strip_query",
    "without_secrets",
    "write_bytes",
    "writing",
]


_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "abfs": "azure", "az": "azure"}
"""Extra that installs the driver of each protocol."""


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
"""fsspec protocols that wrap the URL of another file system."""
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(::[A-Za-z][A-Za-z0-9+.-]*)*://")
_PASSWORD = re.compile(r"(?<=//)[^/?#\s]+@|\b[^\s/?#'\":]+:[^\s/?#'\"]+@")
"""User and password before a host, with or without a scheme."""
_FILE_URL = re.compile(r"file:(?://(?:localhost)?)?(/.*)", re.IGNORECASE | re.DOTALL)


def is_url(place: str) -> bool:
    """Return whether `place` is a URL ("s3://bucket") or a chain ("simplecache::s3://bucket").

    A file URL and any other text are local paths, whatever characters they contain.
    """
    return bool(_URL.match(place)) and not _FILE_URL.match(place)


def absolute(url: str) -> str:
    """Return a local path as absolute path without `~` and `file://`; other URLs are unchanged.

    An absolute path is valid in every process, whatever its working directory.
    """
    if is_url(url):
        return url
    if (file_url := _FILE_URL.match(url)) is not None:
        return os.path.normpath(unquote(file_url[1]))
    # Path.expanduser raises for a name such as ~draft.jpg. Path.resolve would follow links.
    return os.path.abspath(os.path.expanduser(url))  # noqa: PTH100, PTH111


def join(root: str, *parts: str) -> str:
    """Join a root path or URL and parts with single slashes."""
    return "/".join([root.rstrip("/"), *(p.strip("/") for p in parts)])


def resolve_file(url: str, path: str) -> tuple[Any, str]:
    """Return the file system of the folder `url`, and the path on it of the file `path` in there.

    Unlike a part of a URL, `path` may contain any character.
    """
    fs, root = filesystem(url)
    return fs, f"{root.rstrip('/')}/{quote(path) if is_http(url) else path}"


def printable(text: str) -> str:
    r"""Return a file name as valid Unicode: bytes that are not UTF-8 are escaped, as in \xe4."""
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")


def strip_query(url: str) -> str:
    """Remove the query from a web URL, as it may hold a signature; other URLs are unchanged."""
    return url.split("?", 1)[0] if is_http(url) else url


def strip_password(text: str) -> str:
    """Remove user and password from the URLs in a text."""
    return _PASSWORD.sub("", text)


def without_secrets(text: str) -> str:
    """Remove user, password and query, which may hold a signature, from the URLs in a text."""
    return strip_password(without_queries(text))


def filesystem(url: str) -> tuple[Any, str]:
    """Return the fsspec file system of `url`, and the path on it.

    Raises:
        PetsError: The protocol is unknown, or its driver is not installed.
    """
    if not is_url(url):
        return fsspec.filesystem("file", use_listings_cache=False), absolute(url)
    try:
        # A cached listing hides files that other processes wrote since.
        head, colons, rest = (url, "", "") if is_chain(url) else url.partition("::")
        if head.startswith(("gs://", "gcs://")):
            # gcsfs logs a traceback of each failed request, whose error it also raises.
            logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
        fs, path = url_to_fs(head, use_listings_cache=False)
        return fs, path + colons + rest
    except ImportError as error:
        extra = _EXTRAS.get(url.split("://")[0])
        remedy = f": pip install 'pets-pipeline[{extra}]'" if extra else ""
        raise PetsError(f"{url}: {error}{remedy}") from error
    except ValueError as error:
        raise PetsError(f"{url}: {error}") from error


def is_http(url: str) -> bool:
    """Return whether `url` is a web URL."""
    return url.startswith(("http://", "https://"))


def is_chain(url: str) -> bool:
    """Return whether "::" chains file systems; otherwise it is part of a file name."""
    return "::" in url and url.split(":", 1)[0] in _CHAINING


def exists(url: str) -> bool:
    """Return whether a file or folder exists at `url`."""
    fs, path = filesystem(url)
    return bool(fs.exists(path))


def list_folder(url: str) -> dict[str, dict[str, Any]]:
    """Return fsspec's `info` of each entry of a folder by name; empty if there is no folder.

    Raises the store's errors, unlike fsspec's `glob` and `find`, which treat a folder without list
    permission as empty.

    Raises:
        PetsError: A file is where a folder should be.
    """
    fs, path = filesystem(url)
    try:
        listed = fs.ls(path, detail=True)
    except FileNotFoundError:
        return {}
    except NotADirectoryError as error:
        raise PetsError(f"{url}: a part of this path is a file, not a folder") from error
    entries = {info["name"].rstrip("/").rsplit("/", 1)[-1]: info for info in listed}
    # Object stores may list the folder itself.
    entries.pop("", None)
    return {name: info for name, info in entries.items() if info["name"].rstrip("/") != path}


def find_files(url: str) -> dict[str, dict[str, Any]]:
    """Return fsspec's `info` of every file under a folder, by relative path.

    Folders without list permission are skipped, so that the result may be incomplete.
    """
    fs, root = filesystem(url)
    found = fs.find(root, detail=True)
    return {path.removeprefix(root.rstrip("/") + "/"): info for path, info in found.items()}


def raw_modified_time(info: Mapping[str, Any]) -> Any:
    """Return the store's modification time of a file: a number, text, datetime or None."""
    keys = ("mtime", "LastModified", "Last-Modified", "last_modified", "updated", "modified",
            "modify", "modificationTime", "created")  # fmt: skip
    return next((info[key] for key in keys if info.get(key)), None)


def modified_time(info: Mapping[str, Any]) -> float:
    """Return the modification time of a file, seconds since 1970; infinite if unknown."""
    value = raw_modified_time(info)
    if isinstance(value, str):
        value = _parse_time(value)
    if isinstance(value, datetime):
        return value.timestamp()
    if value is None:
        return float("inf")
    # WebHDFS has milliseconds.
    return float(value) / 1000 if "modificationTime" in info else float(value)


def _parse_time(text: str) -> datetime | None:
    """Return a time in ISO 8601 or in the format of FTP (RFC 3659); None if it has another."""
    try:
        if text[:14].isdigit():
            return datetime.strptime(text[:14], "%Y%m%d%H%M%S").replace(tzinfo=UTC)
        return datetime.fromisoformat(text)
    except ValueError:
        return None


def open_read(url: str) -> IO[bytes]:
    """Open a file for reading, binary and seekable.

    Raises:
        PetsError: The file does not exist or cannot be read.
    """
    fs, path = filesystem(url)
    try:
        return fs.open(path, "rb")  # type: ignore[no-any-return]
    except FileNotFoundError as error:
        raise PetsError(f"{url} does not exist") from safe_cause(error)
    except IsADirectoryError as error:
        raise PetsError(f"{url} is a folder, not a file") from safe_cause(error)
    except OSError as error:
        raise PetsError(f"{url} cannot be read: {error}") from safe_cause(error)


def read_bytes(url: str) -> bytes:
    """Read a whole file; errors as `open_read`."""
    with open_read(url) as file, wrap_errors(f"{url} cannot be read"):
        return file.read()


@contextmanager
def writing(url: str, setting: str = "store") -> Iterator[CountingWriter]:
    """Open a file for atomic writing: it appears at `url` when the block ends without an error.

    A local file is written under a hidden name in the same folder and renamed. An object store
    shows an object only when its upload is closed; a failed upload is aborted.

    Args:
        url: URL of the file.
        setting: Setting that the message names if the disk is full.

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
    uses_partial = local or "memory" in _protocols(fs)
    folder, slash, name = path.rpartition("/")
    # Readers of a folder of Parquet files skip names that start with a dot.
    target = f"{folder}{slash}.{name}.partial-{uuid.uuid4().hex[:8]}" if uses_partial else path
    raw = fs.open(target, "wb")
    try:
        yield CountingWriter(raw)
        if local:
            raw.flush()
            os.fsync(raw.fileno())
        raw.close()
        if local:
            Path(target).replace(path)
        elif uses_partial:
            # `mv` treats *, ? and [ in a name as a pattern.
            fs.cp_file(target, path)
            fs.rm_file(target)
    except BaseException:
        _abort(fs, raw, target, uses_partial)
        raise


def _abort(fs: Any, raw: Any, target: str, uses_partial: bool) -> None:
    if uses_partial:
        try:
            # Closing flushes, which also fails on a full disk.
            with contextlib.suppress(OSError):
                raw.close()
        finally:
            if fs.exists(target):
                fs.rm(target)
    else:
        # Closing, even by the garbage collector, would complete the upload with partial data.
        raw.closed = True
        # The error that stopped the upload may also prevent aborting it.
        with contextlib.suppress(Exception):
            raw.discard()


def write_bytes(url: str, data: bytes, setting: str = "store") -> None:
    """Write a small file atomically; arguments as for `writing`."""
    with writing(url, setting) as file:
        file.write(data)


def remove(url: str) -> None:
    """Remove a file, or a folder and its contents; a missing one is not an error."""
    fs, path = filesystem(url)
    if is_local(fs):
        if fs.exists(path):
            fs.rm(path, recursive=True)
        return
    # On other stores `rm` treats *, ? and [ in a name as a pattern.
    for file in [path] if fs.isfile(path) else fs.find(path):
        fs.rm_file(file)


def check_writable(url: str, setting: str = "store") -> None:
    """Check that files can be written under `url`, by writing a probe file.

    Raises:
        PetsError: The probe file cannot be written.
    """
    probe = join(url, f".write-probe-{uuid.uuid4().hex[:8]}")
    try:
        write_bytes(probe, b"")
        remove(probe)
    except Exception as error:
        raise PetsError(
            f"{setting} = {url}: cannot be written ({type(error).__name__}: {error}). "
            f"Set {setting} to a writable location."
        ) from error


def is_local(fs: Any) -> bool:
    """Return whether a file system is that of this machine."""
    return "file" in _protocols(fs)


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


class CountingWriter(io.RawIOBase):
    """Write-only binary file; `tell` returns the bytes written, `close` leaves the file open."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._num_bytes = 0

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self._num_bytes += view.nbytes
        self._file.write(view)
        return view.nbytes

    def tell(self) -> int:
        return self._num_bytes

    def writable(self) -> bool:
        return True
