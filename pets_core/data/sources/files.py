"""The files of a source, and those that lie each on its own in a store."""

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
from pets_core.errors import telling
from pets_core.storage.download import retrying

__all__ = [
    "BATCH_FILES",
    "MAX_FILE_BYTES",
    "FileEntry",
    "Files",
    "FolderFiles",
    "ListedFiles",
    "size_refusal",
    "skip_reason",
]

MAX_FILE_BYTES = 1 << 28
"""No photo is larger; a bound on what an archive's header can make us allocate."""

BATCH_FILES = 32
"""So many files are in memory at a time, or twice as many where one batch is fetched ahead."""

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
"""Folders that Windows, macOS, Linux and network drives make, in lower case."""


class FileEntry(NamedTuple):
    """One file, before it is read.

    Attributes:
        path: Below the folder or inside the archive, with single slashes.
        size: Bytes.
        mark: Changes when the content does: a hash, a checksum, an ETag or a time.
        refusal: Why it must not be read ("link", "hidden", ...); empty when it may be.
    """

    path: str
    size: int
    mark: str
    refusal: str = ""


class Files(Protocol):
    """Files that can be listed without reading them all into memory, and read in any order."""

    def entries(self) -> Sequence[FileEntry]:
        """List every file, in an order that depends on the source alone."""

    def read(self, paths: Sequence[str]) -> Iterator[bytes | UnreadablePhotoError]:
        """Yield the bytes of each path, in this order; safe in several threads at once.

        Of a file that is there but damaged, an `UnreadablePhotoError` is yielded instead.

        Raises:
            PetsError: A file cannot be read, after several attempts.
        """


class ListedFiles:
    """Files at known places of any store, each under a path of its own.

    Args:
        paths: The paths, each once.
        locate: Returns a path's file system and its place there.
    """

    def __init__(self, paths: Iterable[str], locate: Callable[[str], tuple[Any, str]]) -> None:
        self._paths = list(paths)
        self._locate = locate

    def entries(self) -> Sequence[FileEntry]:
        """Ask the store for each file's size and version; a file that is not there is refused."""
        with ThreadPoolExecutor(_REMOTE_READERS) as pool:
            return list(pool.map(self._entry, self._paths))

    def read(self, paths: Sequence[str]) -> Iterator[bytes]:
        """Read a batch at a time, concurrently where the store can."""
        for start in range(0, len(paths), BATCH_FILES):
            batch = paths[start : start + BATCH_FILES]
            fs, _ = self._locate(batch[0])
            # The pool is gone before anything is yielded: a reader that is left half-way and
            # collected later must not wait for threads then.
            with ThreadPoolExecutor(1 if storage.is_local(fs) else _REMOTE_READERS) as pool:
                contents = list(pool.map(self._read_one, batch))
            yield from contents

    def _entry(self, path: str) -> FileEntry:
        fs, place = self._found(path)
        with telling(f"{place} cannot be reached"):
            try:
                info = retrying(lambda: fs.info(place))
            except (FileNotFoundError, NotADirectoryError):
                return FileEntry(path, 0, "", "missing")
            return _entry(path, info, "" if info["type"] == "file" else "special_file")

    def _read_one(self, path: str) -> bytes:
        fs, place = self._found(path)
        with telling(f"{place} cannot be read"):
            return retrying(lambda: bytes(fs.cat_file(place)))

    def _found(self, path: str) -> tuple[Any, str]:
        """A path's place, as its folder spells it.

        There it may have slashes for backslashes, another Unicode form, or no blanks around it.
        """
        fs, place = self._locate(path)
        plain = path.isascii() and "\\" not in path and path == path.strip()
        if plain or not storage.is_local(fs):
            return fs, place
        slashes = path.replace("\\", "/").strip()
        spellings = (path, slashes, normalize("NFC", slashes), normalize("NFD", slashes))
        places = (self._locate(spelling)[1] for spelling in spellings)
        return fs, next((found for found in places if os.path.lexists(found)), place)


class FolderFiles:
    """All files below a folder; those that `skip_reason` names are refused."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._listings: dict[str, list[dict[str, Any]]] = {}

    def entries(self) -> Sequence[FileEntry]:
        """List the folder, sorted by path; it is asked once, for the labels and the plan alike.

        Raises:
            PetsError: It, or a folder in it, cannot be listed.
        """
        return self._entries

    @cached_property
    def _entries(self) -> Sequence[FileEntry]:
        fs, root = storage.filesystem(self._url)
        with telling(f"{self._url} cannot be listed"):
            if self._over_http or storage.is_local(fs):
                found = dict(_walk(fs, root, self._listings))
            else:
                found = retrying(lambda: fs.find(root, detail=True))
        entries, unsure = [], []
        for full, info in found.items():
            if not (path := self._path(full, root)):
                continue
            if reason := skip_reason(path):
                entries.append(
                    FileEntry(storage.printable(path), info.get("size") or 0, "", reason)
                )
            # An HTTP listing names files and says no more; on disk, "other" may be a link.
            elif info.get("size") is None or info.get("type") == "other":
                unsure.append(path)
            else:
                entries.append(_entry(path, info))
        return sorted([*entries, *self._listed(unsure).entries()])

    def holds(self, is_wanted: Callable[[str], bool]) -> bool:
        """Whether there is a file with such a path; lists no more folders than it takes."""
        fs, root = storage.filesystem(self._url)
        with telling(f"{self._url} cannot be listed"):
            paths = (self._path(full, root) for full, _ in _walk(fs, root, self._listings))
            return any(path and not skip_reason(path) and is_wanted(path) for path in paths)

    def read(self, paths: Sequence[str]) -> Iterator[bytes]:
        """Read a batch at a time, concurrently where the store can."""
        return self._listed(paths).read(paths)

    def _path(self, full: str, root: str) -> str:
        """A file's path below the folder; empty for a link of a web page to itself."""
        path = full[len(root) :].lstrip("/")
        if self._over_http:
            # A listing links to itself in another order, too.
            return "" if "?" in path else unquote(path, errors="surrogateescape")
        return path

    def _listed(self, paths: Iterable[str]) -> ListedFiles:
        return ListedFiles(paths, partial(storage.below, self._url))

    @property
    def _over_http(self) -> bool:
        return self._url.startswith(("http://", "https://"))


def skip_reason(path: str) -> str:
    """Why a file must not be taken for a photo, by its path alone; empty when it may be.

    "system_folder": it lies in a folder that a system makes, as thumbnails or a recycle bin.
    "hidden": its name, or a folder's, begins with a dot.
    "name_not_utf8": the data set cannot hold its name.
    """
    parts = path.split("/")
    if any(part.lower() in _SYSTEM_FOLDERS for part in parts[:-1]):
        return "system_folder"
    if any(part.startswith(".") for part in parts):
        return "hidden"
    return "" if storage.printable(path) == path else "name_not_utf8"


def size_refusal(size: int) -> str:
    """Why a file of this many bytes must not be read; empty when it may be."""
    return "too_large" if size > MAX_FILE_BYTES else ""


def _walk(
    fs: Any, root: str, listings: dict[str, list[dict[str, Any]]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """All files below a folder; fsspec's own walk passes over a folder that it cannot list.

    Args:
        fs: The file system.
        root: The folder.
        listings: Of folders that were listed before, which are not listed again; it grows.
    """
    folders, seen = [root], {root.rstrip("/")}
    while folders:
        folder = folders.pop()
        try:
            if folder not in listings:
                listings[folder] = retrying(partial(fs.ls, folder, detail=True))
        except PermissionError:
            # Recycle bins and their like belong to the system.
            if not skip_reason(f"{folder[len(root) :].lstrip('/')}/"):
                raise
            yield f"{folder}/", {"size": 0}
            continue
        for info in listings[folder]:
            name = info["name"].rstrip("/")
            if info["type"] != "directory" and not _links_to_folder(info):
                yield name, info
            # A web page may link to itself, or to the folder above.
            elif name not in seen and name.rsplit("/", 1)[-1] not in (".", ".."):
                seen.add(name)
                folders.append(name)


def _links_to_folder(info: dict[str, Any]) -> bool:
    """Whether a local file is a link to a folder, though not to one around it."""
    if not info.get("islink") or not Path(info["name"]).is_dir():
        return False
    link = Path(info["name"])
    return not link.parent.resolve().is_relative_to(link.resolve())


def _entry(path: str, info: dict[str, Any], kind: str = "") -> FileEntry:
    size = int(info.get("size") or 0)
    tag = next((info[k] for k in ("ETag", "etag", "md5Hash", "content_md5") if info.get(k)), None)
    changed = storage.when_changed(info)
    # A file whose version nobody tells is new each time.
    known = tag or (f"{size}-{changed}" if changed else uuid4().hex)
    return FileEntry(path, size, str(known), kind or size_refusal(size))
