"""Archives and other single files that hold photos, read in place."""

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
from pets_core.data.sources.files import FileEntry, Files, size_refusal, skip_reason
from pets_core.data.sources.formats import UnreadablePhotoError
from pets_core.errors import PetsError, disk_fault, explain_full_disk
from pets_core.storage.cache import lock_of, mark_used, sweep
from pets_core.storage.download import forget_download, local_file

__all__ = ["ARCHIVE_SUFFIXES", "PackedFiles", "ZipFiles", "open_archive", "pack"]

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
"""What the readers of archives raise on damaged bytes."""
_OPENERS: dict[bytes, Callable[[Path], Any]] = {
    b"\x1f\x8b": igzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
}
_INDEX_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("size", pa.int64()),
        ("mark", pa.string()),
        ("refusal", pa.string()),
        ("offset", pa.int64()),
    ]
)


class PackedFiles:
    """Files inside one uncompressed local file, at places its index knows."""

    def __init__(self, data: Path, index: Path) -> None:
        self._data, self._index = data, index

    def entries(self) -> Sequence[FileEntry]:
        """List the files in the archive's order."""
        table = self._table.select(FileEntry._fields)
        return [FileEntry(*row) for row in zip(*(c.to_pylist() for c in table), strict=True)]

    def read(self, paths: Sequence[str]) -> Iterator[bytes]:
        """Read from the places in the index."""
        with self._data.open("rb") as file:
            for path in paths:
                offset, size = self._places[path]
                yield os.pread(file.fileno(), size, offset)

    @cached_property
    def _table(self) -> pa.Table:
        return pq.read_table(self._index)

    @cached_property
    def _places(self) -> dict[str, tuple[int, int]]:
        columns = (self._table[name].to_pylist() for name in ("path", "offset", "size"))
        # An archive may hold a path twice; its first entry is the one that is planned.
        places: dict[str, tuple[int, int]] = {}
        for path, offset, size in zip(*columns, strict=True):
            places.setdefault(path, (offset, size))
        return places


class ZipFiles:
    """The files of a local .zip, read in place."""

    def __init__(self, path: Path, url: str) -> None:
        self._path, self._url = path, url

    def entries(self) -> Sequence[FileEntry]:
        """List the files in the archive's order; nothing is decompressed."""
        return [
            _entry(path, info.file_size, f"crc32-{info.CRC:08x}-{info.file_size}", _zip_kind(info))
            for path, info in self._infos
        ]

    def read(self, paths: Sequence[str]) -> Iterator[bytes | UnreadablePhotoError]:
        """Decompress each file, verifying its CRC; a damaged one does not spoil the others."""
        for path in paths:
            try:
                yield self._zip.read(self._members[path])
            except NotImplementedError as error:
                yield UnreadablePhotoError("unsupported", str(error))
            except _DAMAGED as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise PetsError(f"{self._url} cannot be read: {error}") from error
                yield UnreadablePhotoError("damaged", str(error))

    @property
    def _infos(self) -> Iterator[tuple[str, zipfile.ZipInfo]]:
        """Each file's path and header."""
        for info in self._zip.infolist():
            path = _member_path(_zip_name(info))
            # A folder packed on Windows ends with a backslash.
            if not info.is_dir() and not info.filename.endswith("\\"):
                yield path, info

    @cached_property
    def _members(self) -> dict[str, zipfile.ZipInfo]:
        # Of a path that is there twice, the first entry is the one that is planned.
        members: dict[str, zipfile.ZipInfo] = {}
        for path, info in self._infos:
            members.setdefault(path, info)
        return members

    @cached_property
    def _zip(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self._path)
        except _DAMAGED as error:
            raise _damaged(self._url, error) from error


def open_archive(url: str, cache_dir: str, checksum: str = "") -> Files:
    """Open an archive at a path or URL: .zip, .tar, or .tar compressed by gzip, bzip2 or xz.

    No file is unpacked. A remote archive is downloaded once; a compressed .tar, in which one cannot
    jump, is decompressed once into a single file under `cache_dir`.

    Raises:
        PetsError: It is not there, cut short, damaged, or no archive.
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
        # The archive is good, for all we know, where the cache has no room for it.
        if disk_fault(error) is None:
            forget_download(path, cache_dir)
        raise
    except _DAMAGED as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            # The machine's fault, a full disk for one; the archive is good for all we know.
            raise PetsError(f"{url} cannot be read through: {error} (cache_dir)") from error
        forget_download(path, cache_dir)
        raise _damaged(url, error) from error


def pack(
    identity: tuple[Any, ...],
    cache_dir: str,
    members: Callable[[IO[bytes]], Iterator[tuple[FileEntry, int]]],
    data: Path | None = None,
) -> PackedFiles:
    """Open a packed file under `cache_dir`, making it first where it is not there yet.

    Args:
        identity: What the packed file depends on; another identity, another file.
        cache_dir: Local folder.
        members: Yields entry and offset of each file; what it writes to the file it is given
            becomes the data.
        data: The data, where it lies on disk already and only an index is made.
    """
    key = sha256(repr(identity).encode()).hexdigest()[:24]
    folder = Path(cache_dir).expanduser() / "packed"
    folder.mkdir(parents=True, exist_ok=True)
    index, packed = folder / f"{key}.index.parquet", data or folder / f"{key}.data"
    with explain_full_disk(str(folder), "cache_dir"), lock_of(index):
        if not (index.exists() and packed.exists()):
            sweep(folder)
            beside = folder / f"{key}.partial"
            try:
                with beside.open("w+b") as sink:
                    rows = [(*entry, offset) for entry, offset in members(sink)]
                if data is None:
                    beside.replace(packed)
            finally:
                beside.unlink(missing_ok=True)
            columns = list(zip(*rows, strict=True)) or [()] * len(_INDEX_SCHEMA)
            arrays = [pa.array(c, f.type) for c, f in zip(columns, _INDEX_SCHEMA, strict=True)]
            with storage.writing(str(index), "cache_dir") as file:
                pq.write_table(pa.Table.from_arrays(arrays, schema=_INDEX_SCHEMA), file)
        # Data that lies elsewhere is its owner's.
        for own in (index,) if data else (index, packed):
            mark_used(own)
    return PackedFiles(packed, index)


def _open_tar(path: Path, head: bytes, cache_dir: str) -> PackedFiles:
    status = path.stat()
    identity = ("tar-2", str(path.absolute()), status.st_size, status.st_mtime_ns)
    opener = next((o for magic, o in _OPENERS.items() if head.startswith(magic)), None)
    if opener is None:
        return pack(identity, cache_dir, lambda _: _tar_members(path), path)

    def decompressed(sink: IO[bytes]) -> Iterator[tuple[FileEntry, int]]:
        with opener(path) as source:
            shutil.copyfileobj(source, sink, 1 << 20)
        sink.flush()
        return _tar_members(Path(sink.name))

    return pack(identity, cache_dir, decompressed)


def _tar_members(path: Path) -> Iterator[tuple[FileEntry, int]]:
    with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            if member.isdir():
                continue
            entry = _entry(_member_path(member.name), member.size, "", _tar_kind(member))
            if not entry.refusal:
                data = os.pread(file.fileno(), member.size, member.offset_data)
                if len(data) != member.size:
                    raise EOFError(f"{member.name} ends too early")
                entry = entry._replace(mark=f"sha256:{sha256(data).hexdigest()}")
            yield entry, member.offset_data
            # tarfile keeps every member it has seen.
            tar.members = []  # type: ignore[attr-defined]
        # tarfile takes a header cut short for the end; a whole archive ends with zeros.
        if os.pread(file.fileno(), tarfile.BLOCKSIZE, tar.offset) != bytes(tarfile.BLOCKSIZE):
            raise EOFError("the archive's end is missing")


def _tar_kind(member: tarfile.TarInfo) -> str:
    if member.issym() or member.islnk():
        return "link"
    return "" if member.isreg() and not member.issparse() else "special_file"


def _zip_name(info: zipfile.ZipInfo) -> str:
    """A member's name; many tools write UTF-8 without the flag that says so, read as CP437."""
    try:
        return (
            info.filename.encode("cp437").decode() if not info.flag_bits & 0x800 else info.filename
        )
    except UnicodeError:
        return info.filename


def _zip_kind(info: zipfile.ZipInfo) -> str:
    if info.flag_bits & 1:
        return "encrypted"
    # The upper half holds the Unix mode, 0 where it was written elsewhere.
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind == stat.S_IFLNK:
        return "link"
    return "" if kind in (0, stat.S_IFREG) else "special_file"


def _member_path(name: str) -> str:
    r"""A member's name as a path below the archive: "./a//b" and "a\b" are "a/b", in Unicode NFC.

    The one place where names are normalised; labels and files are matched by what it returns.
    """
    name = name.replace("\\", "/")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return ("/" if name.startswith("/") else "") + normalize("NFC", "/".join(parts))


def _entry(path: str, size: int, mark: str, kind: str) -> FileEntry:
    """A member's entry; `kind` is why it must not be read, if its header alone forbids it."""
    is_unsafe = path.startswith("/") or ".." in path.split("/") or "\0" in path
    refusal = "unsafe_path" if is_unsafe else skip_reason(path) or kind or size_refusal(size)
    return FileEntry(storage.printable(path), size, mark, refusal)


def _damaged(url: str, error: Exception) -> PetsError:
    return PetsError(f"{url} is cut short or damaged ({error}): fetch it again")
