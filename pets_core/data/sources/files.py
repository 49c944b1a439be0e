"""List and read the files of a source: interface, single files and folders."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from unicodedata import normalize
from urllib.parse import unquote
from uuid import uuid4

from pets_core import storage
from pets_core.data.sources.formats import UnreadablePhotoError
from pets_core.errors import PetsError, wrap_errors
from pets_core.storage.download import call_with_retries

__all__ = [
    "BATCH_FILES",
    "MAX_FILE_BYTES",
    "FileEntry",
    "Files",
    "FolderFiles",
    "ListedFiles",
    "path_skip_reason",
    "refuse_local_files",
    "size_skip_reason",
]

MAX_FILE_BYTES = 1 << 28
"""Maximum size of a photo. Limits the memory that a forged archive header can allocate."""

BATCH_FILES = 32
"""Files read into memory per batch. Prefetching one batch doubles the files in memory."""

_REMOTE_READERS = 16

_SYSTEM_FOLDERS = frozenset(
    {
        "$recycle.bin", "__macosx", "__pycache__", "found.000", "lost+found", "lost.dir",
        "network trash folder", "recently deleted", "recycled", "recycler", "~snapshot",
        "system volume information", "temporary items", "#recycle", "#snapshot", "@appdata",
        "@docker", "@eadir", "@recently-snapshot", "@recycle", "@sharebin", "@synoeastream",
        "@synoresource", "@systemp", "@tmp", "@__qini", "@__thumb", ".thumbnails", ".trash",
        ".trashes",
    }
)  # fmt: skip
"""Folders created by Windows, macOS, Linux and network drives, in lower case."""

_REMOTE_PROTOCOLS = frozenset(
    {
        "abfs", "abfss", "adl", "az", "ftp", "gcs", "gdrive", "github", "gs", "hdfs", "hf", "http",
        "https", "oci", "oss", "s3", "s3a", "sftp", "smb", "ssh", "webhdfs",
    }
)  # fmt: skip
"""fsspec protocols that never read files of this machine."""


class FileEntry(NamedTuple):
    """Metadata of one file, known without reading it.

    Attributes:
        path: Path relative to the folder or archive, with single slashes.
        size: Bytes.
        version_tag: Version of the content: a hash, checksum, ETag or modification time.
        skip_reason: Reason code for not reading the file ("link", "hidden", ...); empty: readable.
    """

    path: str
    size: int
    version_tag: str
    skip_reason: str = ""


class Files(Protocol):
    """Files of a source, which can be listed, and read in any order."""

    def entries(self) -> Sequence[FileEntry]:
        """Return all files. The order depends on the source only."""

    def read(self, paths: Sequence[str]) -> Iterator[bytes | UnreadablePhotoError]:
        """Yield the bytes of each path, in the given order. Thread-safe.

        Yields an `UnreadablePhotoError` in place of a damaged file.

        Raises:
            PetsError: A file cannot be read after all retries.
        """


class ListedFiles:
    """Files listed by path, on any file system.

    Args:
        paths: Unique paths.
        locate: Returns the file system of a path and its location on it.
    """

    def __init__(self, paths: Iterable[str], locate: Callable[[str], tuple[Any, str]]) -> None:
        self._paths = list(paths)
        self._locate = locate

    def entries(self) -> Sequence[FileEntry]:
        """Return the size and version of each file. A missing file has the reason "missing"."""
        with ThreadPoolExecutor(_REMOTE_READERS) as pool:
            return list(pool.map(self._entry, self._paths))

    def read(self, paths: Sequence[str]) -> Iterator[bytes]:
        """Yield the bytes of each path. Reads in batches, concurrently from a remote store."""
        for start in range(0, len(paths), BATCH_FILES):
            batch = paths[start : start + BATCH_FILES]
            fs, _ = self._locate(batch[0])
            # Close the pool before yielding, so that an abandoned generator does not wait for
            # threads when it is garbage-collected.
            with ThreadPoolExecutor(1 if storage.is_local(fs) else _REMOTE_READERS) as pool:
                contents = list(pool.map(self._read_one, batch))
            yield from contents

    def _entry(self, path: str) -> FileEntry:
        fs, location = self._find(path)
        with wrap_errors(f"{location} cannot be reached"):
            try:
                info = call_with_retries(lambda: fs.info(location))
            except (FileNotFoundError, NotADirectoryError):
                return FileEntry(path, 0, "", "missing")
            return _entry(path, info, "" if info["type"] == "file" else "special_file")

    def _read_one(self, path: str) -> bytes:
        fs, location = self._find(path)
        with wrap_errors(f"{location} cannot be read"):
            return call_with_retries(lambda: bytes(fs.cat_file(location)))

    def _find(self, path: str) -> tuple[Any, str]:
        """Locate a path; on a local disk, try other spellings of it.

        These have slashes for backslashes, another Unicode form, or no surrounding whitespace.
        """
        fs, location = self._locate(path)
        is_plain = path.isascii() and "\\" not in path and path == path.strip()
        if is_plain or not storage.is_local(fs):
            return fs, location
        slashes = path.replace("\\", "/").strip()
        spellings = (path, slashes, normalize("NFC", slashes), normalize("NFD", slashes))
        candidates = (self._locate(spelling)[1] for spelling in spellings)
        return fs, next((c for c in candidates if os.path.lexists(c)), location)


class FolderFiles:
    """All files in a folder and its subfolders."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._listings: dict[str, list[dict[str, Any]]] = {}

    def entries(self) -> Sequence[FileEntry]:
        """Return the files sorted by path. The listing is cached.

        Raises:
            PetsError: The folder or one of its subfolders cannot be listed.
        """
        return self._entries

    @cached_property
    def _entries(self) -> Sequence[FileEntry]:
        fs, root = storage.filesystem(self._url)
        with wrap_errors(f"{self._url} cannot be listed"):
            if storage.is_http(self._url) or storage.is_local(fs):
                found = dict(_walk(fs, root, self._listings))
            else:
                found = call_with_retries(lambda: fs.find(root, detail=True))
        entries, incomplete = [], []
        for full, info in found.items():
            if not (path := self._path(full, root)):
                continue
            if reason := path_skip_reason(path):
                entries.append(
                    FileEntry(storage.printable(path), info.get("size") or 0, "", reason)
                )
            # HTTP listings have no sizes. On a local disk, "other" may be a link.
            elif info.get("size") is None or info.get("type") == "other":
                incomplete.append(path)
            else:
                entries.append(_entry(path, info))
        return sorted([*entries, *self._listed(incomplete).entries()])

    def contains(self, predicate: Callable[[str], bool]) -> bool:
        """Whether any file's path satisfies a predicate. Stops listing at the first match."""
        fs, root = storage.filesystem(self._url)
        with wrap_errors(f"{self._url} cannot be listed"):
            paths = (self._path(full, root) for full, _ in _walk(fs, root, self._listings))
            return any(path and not path_skip_reason(path) and predicate(path) for path in paths)

    def read(self, paths: Sequence[str]) -> Iterator[bytes]:
        """Yield the bytes of each path. Reads in batches, concurrently from a remote store."""
        return self._listed(paths).read(paths)

    def _path(self, full: str, root: str) -> str:
        """Return a path relative to the folder; empty for a link from a web page to itself."""
        path = full[len(root) :].lstrip("/")
        if storage.is_http(self._url):
            # Links with a query, such as "?C=N;O=D", sort the same listing.
            return "" if "?" in path else unquote(path, errors="surrogateescape")
        return path

    def _listed(self, paths: Iterable[str]) -> ListedFiles:
        return ListedFiles(paths, partial(storage.resolve_file, self._url))


def path_skip_reason(path: str) -> str:
    """Return the reason to skip a file because of its path; empty: none.

    "system_folder": in a folder that the system creates, such as thumbnails or a recycle bin.
    "hidden": the name of the file or of one of its folders begins with a dot.
    "name_not_utf8": the path cannot be stored in a dataset.
    """
    parts = path.split("/")
    if any(part.lower() in _SYSTEM_FOLDERS for part in parts[:-1]):
        return "system_folder"
    if any(part.startswith(".") for part in parts):
        return "hidden"
    return "" if storage.printable(path) == path else "name_not_utf8"


def size_skip_reason(size: int) -> str:
    """Return the reason to skip a file because of its size in bytes; empty: none."""
    return "too_large" if size > MAX_FILE_BYTES else ""


def _walk(
    fs: Any, root: str, listings: dict[str, list[dict[str, Any]]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield path and info of all files in a folder and its subfolders.

    fsspec's own walk silently skips folders that it cannot list.

    Args:
        fs: File system of the folder.
        root: Path of the folder.
        listings: Cache of listings by folder, updated in place.

    Raises:
        PermissionError: A folder that is not a system folder cannot be listed.
    """
    folders, seen = [root], {root.rstrip("/")}
    while folders:
        folder = folders.pop()
        try:
            if folder not in listings:
                listings[folder] = call_with_retries(partial(fs.ls, folder, detail=True))
        except PermissionError:
            # System folders, such as recycle bins, are often not readable.
            if not path_skip_reason(f"{folder[len(root) :].lstrip('/')}/"):
                raise
            yield f"{folder}/", {"size": 0}
            continue
        for info in listings[folder]:
            name = info["name"].rstrip("/")
            if info["type"] != "directory" and not _links_to_folder(info):
                yield name, info
            # A web page may link to itself or to its parent folder.
            elif name not in seen and name.rsplit("/", 1)[-1] not in (".", ".."):
                seen.add(name)
                folders.append(name)


def _links_to_folder(info: dict[str, Any]) -> bool:
    """Whether a local file is a link to a folder that does not contain the link."""
    if not info.get("islink") or not Path(info["name"]).is_dir():
        return False
    link = Path(info["name"])
    return not link.parent.resolve().is_relative_to(link.resolve())


def _entry(path: str, info: dict[str, Any], reason: str = "") -> FileEntry:
    size = int(info.get("size") or 0)
    tag = next((info[k] for k in ("ETag", "etag", "md5Hash", "content_md5") if info.get(k)), None)
    modified = storage.raw_modified_time(info)
    # A file of unknown version counts as changed in every listing.
    version_tag = tag or (f"{size}-{modified}" if modified else uuid4().hex)
    return FileEntry(path, size, str(version_tag), reason or size_skip_reason(size))


def refuse_local_files(url: str, paths: Iterable[str]) -> None:
    """Refuse local files listed by the remote table at `url`, which could leak into the store.

    Raises:
        PetsError: An entry may be a file of this machine.
    """
    remote = _REMOTE_PROTOCOLS | {_protocol(url)}
    for path in paths:
        if storage.is_url(path):
            # A chain can end in a local file ("simplecache::file:///etc/passwd").
            is_local = storage.is_chain(path) or _protocol(path) not in remote
        else:
            is_local = path.startswith(("/", "file:")) or ".." in path.split("/")
        if is_local:
            raise PetsError(
                f"{url} lists {storage.without_secrets(path)}: a remote table may only list paths "
                "inside its folder and URLs of remote stores, no local files and no chains of file "
                "systems. Copy the table to this machine if you trust it"
            )


def _protocol(url: str) -> str:
    return url.partition("://")[0].lower()
