"""Read photos from archives and packed files without unpacking them."""

from __future__ import annotations

import bz2
import errno
import lzma
import os
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import IO, Any
from unicodedata import normalize

import pyarrow as pa
import pyarrow.parquet as pq
from isal import igzip, isal_zlib

from pets_core import storage
from pets_core.data.sources.files import FileEntry, Files, path_skip_reason, size_skip_reason
from pets_core.data.sources.formats import UnreadablePhotoError
from pets_core.errors import PetsError, disk_error_reason, explain_full_disk
from pets_core.storage.cache import get_lock, mark_used, remove_unused
from pets_core.storage.download import forget_download, local_file

__all__ = ["ARCHIVE_SUFFIXES", "PackedFiles", "ZipFiles", "open_archive", "open_packed"]

ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")

_DAMAGED: tuple[type[Exception], ...] = (  # type: ignore[assignment]
    EOFError,
    isal_zlib.error,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
)
"""Exceptions that archive readers raise on damaged data."""
_OPENERS: dict[bytes, Callable[[Path], Any]] = {
    b"\x1f\x8b": igzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
}
_INDEX_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("size", pa.int64()),
        ("version_tag", pa.string()),
        ("skip_reason", pa.string()),
        ("offset", pa.int64()),
    ]
)


class PackedFiles:
    """Files stored in one uncompressed local file, located by a Parquet index."""

    def __init__(self, data: Path, index: Path) -> None:
        self._data, self._index = data, index

    def entries(self) -> Sequence[FileEntry]:
        """Return the files in archive order."""
        table = self._table.drop_columns(["offset"])
        return [FileEntry(*row) for row in zip(*(c.to_pylist() for c in table), strict=True)]

    def read(self, paths: Sequence[str]) -> Iterator[bytes]:
        """Yield the bytes of each path, located by the index."""
        with self._data.open("rb") as file:
            for path in paths:
                offset, size = self._extents[path]
                yield os.pread(file.fileno(), size, offset)

    @cached_property
    def _table(self) -> pa.Table:
        return pq.read_table(self._index)

    @cached_property
    def _extents(self) -> dict[str, tuple[int, int]]:
        """Offset and size of each path, bytes."""
        columns = (self._table[name].to_pylist() for name in ("path", "offset", "size"))
        # If an archive contains a path twice, the dataset plan uses the first entry.
        extents: dict[str, tuple[int, int]] = {}
        for path, offset, size in zip(*columns, strict=True):
            extents.setdefault(path, (offset, size))
        return extents


class ZipFiles:
    """Files of a local .zip archive, read without unpacking it."""

    def __init__(self, path: Path, url: str) -> None:
        self._path, self._url = path, url

    def entries(self) -> Sequence[FileEntry]:
        """Return the files in archive order. Decompresses nothing."""
        return [
            _entry(
                path,
                info.file_size,
                f"crc32-{info.CRC:08x}-{info.file_size}",
                _zip_skip_reason(info),
            )
            for path, info in self._infos
        ]

    def read(self, paths: Sequence[str]) -> Iterator[bytes | UnreadablePhotoError]:
        """Decompress each path and verify its CRC.

        Yields:
            The bytes, or an `UnreadablePhotoError` if the file is damaged or not supported.
        """
        for path in paths:
            try:
                yield self._zip.read(self._members[path])
            except NotImplementedError as error:
                yield UnreadablePhotoError("unsupported", str(error))
            except _DAMAGED as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise PetsError(f"{self._url}: cannot read the archive: {error}") from error
                yield UnreadablePhotoError("damaged", str(error))

    @property
    def _infos(self) -> Iterator[tuple[str, zipfile.ZipInfo]]:
        """Path and header of each file."""
        for info in self._zip.infolist():
            path = _member_path(_zip_name(info))
            # Folder names in archives made on Windows end with a backslash.
            if not info.is_dir() and not info.filename.endswith("\\"):
                yield path, info

    @cached_property
    def _members(self) -> dict[str, zipfile.ZipInfo]:
        # If an archive contains a path twice, the dataset plan uses the first entry.
        members: dict[str, zipfile.ZipInfo] = {}
        for path, info in self._infos:
            members.setdefault(path, info)
        return members

    @cached_property
    def _zip(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self._path)
        except _DAMAGED as error:
            raise _damaged_error(self._url, error) from error


def open_archive(url: str, cache_dir: str, checksum: str = "") -> Files:
    """Open a .zip, .tar, .tar.gz, .tar.bz2 or .tar.xz archive.

    The members are not unpacked to separate files. A remote archive is downloaded once. A
    compressed .tar has no random access, so it is decompressed once to one file in `cache_dir`.

    Args:
        url: Path or URL of the archive.
        cache_dir: Local folder for downloads and decompressed archives.
        checksum: Expected checksum, such as "md5:..." or "sha256:..."; empty: not verified.

    Raises:
        PetsError: The archive is missing, truncated, damaged or in another format.
    """
    path = local_file(url, cache_dir, checksum)
    try:
        with path.open("rb") as file:
            head = file.read(6)
        if head.startswith(b"PK"):
            files: Files = ZipFiles(path, url)
            files.entries()
            return files
        return _open_tar(path, head, cache_dir)
    except PetsError as error:
        # A full cache disk does not mean that the archive is damaged: keep the download.
        if disk_error_reason(error) is None:
            forget_download(path, cache_dir)
        raise
    except _DAMAGED as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            # A machine error, such as a full disk, does not mean that the archive is damaged.
            raise PetsError(
                f"{url}: cannot read or cache the archive: {error}. Check the disk of cache_dir"
            ) from error
        forget_download(path, cache_dir)
        raise _damaged_error(url, error) from error


def open_packed(
    identity: tuple[Any, ...],
    cache_dir: str,
    members: Callable[[IO[bytes]], Iterator[tuple[FileEntry, int]]],
    data: Path | None = None,
) -> PackedFiles:
    """Open a packed file in `cache_dir`, creating it on first use.

    Args:
        identity: Cache key: everything that the content of the packed file depends on.
        cache_dir: Local folder.
        members: Yields the entry and the offset (bytes) of each file. Writes the files' data to
            the open file that it receives.
        data: Existing file that contains the data; only its index is created. None: create both.
    """
    key = sha256(repr(identity).encode()).hexdigest()[:24]
    folder = Path(cache_dir).expanduser() / "packed"
    folder.mkdir(parents=True, exist_ok=True)
    index, packed = folder / f"{key}.index.parquet", data or folder / f"{key}.data"
    with explain_full_disk(str(folder), "cache_dir"), get_lock(index):
        if not (index.exists() and packed.exists()):
            remove_unused(folder)
            partial = folder / f"{key}.partial"
            try:
                with partial.open("w+b") as sink:
                    rows = [(*entry, offset) for entry, offset in members(sink)]
                if data is None:
                    partial.replace(packed)
            finally:
                partial.unlink(missing_ok=True)
            columns = list(zip(*rows, strict=True)) or [()] * len(_INDEX_SCHEMA)
            arrays = [pa.array(c, f.type) for c, f in zip(columns, _INDEX_SCHEMA, strict=True)]
            with storage.writing(str(index), "cache_dir") as file:
                pq.write_table(pa.Table.from_arrays(arrays, schema=_INDEX_SCHEMA), file)
        # `data` is not a cache file: do not mark it as one.
        for cached in (index,) if data else (index, packed):
            mark_used(cached)
    return PackedFiles(packed, index)


def _open_tar(path: Path, head: bytes, cache_dir: str) -> PackedFiles:
    status = path.stat()
    identity = ("tar-2", str(path.absolute()), status.st_size, status.st_mtime_ns)
    opener = next((o for magic, o in _OPENERS.items() if head.startswith(magic)), None)
    if opener is None:
        return open_packed(identity, cache_dir, lambda _: _tar_members(path), path)

    def decompressed(sink: IO[bytes]) -> Iterator[tuple[FileEntry, int]]:
        with opener(path) as source:
            shutil.copyfileobj(source, sink, 1 << 20)
        sink.flush()
        return _tar_members(Path(sink.name))

    return open_packed(identity, cache_dir, decompressed)


def _tar_members(path: Path) -> Iterator[tuple[FileEntry, int]]:
    with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            if member.isdir():
                continue
            entry = _entry(_member_path(member.name), member.size, "", _tar_skip_reason(member))
            if not entry.skip_reason:
                data = os.pread(file.fileno(), member.size, member.offset_data)
                if len(data) != member.size:
                    raise EOFError(f"{member.name} is truncated")
                entry = entry._replace(version_tag=f"sha256:{sha256(data).hexdigest()}")
            yield entry, member.offset_data
            # Free the members that tarfile keeps in memory.
            tar.members = []  # type: ignore[attr-defined]
        # tarfile reads a truncated header as the end; a complete archive ends with a zero block.
        if os.pread(file.fileno(), tarfile.BLOCKSIZE, tar.offset) != bytes(tarfile.BLOCKSIZE):
            raise EOFError("the end of the archive is missing")


def _tar_skip_reason(member: tarfile.TarInfo) -> str:
    if member.issym() or member.islnk():
        return "link"
    return "" if member.isreg() and not member.issparse() else "special_file"


def _zip_name(info: zipfile.ZipInfo) -> str:
    """Return a member's name, decoded as UTF-8 if possible.

    zipfile decodes names without the UTF-8 flag as CP437, but many tools write UTF-8 without it.
    """
    try:
        return (
            info.filename.encode("cp437").decode() if not info.flag_bits & 0x800 else info.filename
        )
    except UnicodeError:
        return info.filename


def _zip_skip_reason(info: zipfile.ZipInfo) -> str:
    if info.flag_bits & 1:
        return "encrypted"
    # The upper 16 bits are the Unix mode; 0 if the archive was made on another system.
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind == stat.S_IFLNK:
        return "link"
    return "" if kind in (0, stat.S_IFREG) else "special_file"


def _member_path(name: str) -> str:
    r"""Normalize a member's name: "./a//b" and "a\b" become "a/b", in Unicode NFC.

    Labels and files are matched by the normalized paths; no other code normalizes member names.
    """
    name = name.replace("\\", "/")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return ("/" if name.startswith("/") else "") + normalize("NFC", "/".join(parts))


def _entry(path: str, size: int, version_tag: str, header_reason: str) -> FileEntry:
    """Return the entry of an archive member; its skip reason is the first of path, header and size.

    Args:
        path: Normalized path.
        size: Uncompressed bytes.
        version_tag: See `FileEntry`.
        header_reason: Skip reason from the member's header, or an empty string.
    """
    is_unsafe = path.startswith("/") or ".." in path.split("/") or "\0" in path
    reason = path_skip_reason(path) or header_reason or size_skip_reason(size)
    return FileEntry(
        storage.printable(path), size, version_tag, "unsafe_path" if is_unsafe else reason
    )


def _damaged_error(url: str, error: Exception) -> PetsError:
    return PetsError(f"{url}: the archive is truncated or damaged ({error}). Download it again")
