"""Remote files, brought to this machine once: retried, resumed, verified."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from tenacity import (
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    wait_exponential,
    wait_random,
)

from pets_core import storage
from pets_core.errors import PetsError, explain_full_disk, is_retryable, tellable, telling
from pets_core.storage.cache import lock_of, mark_used, sweep

__all__ = ["forget_download", "local_file", "retrying", "verify"]

Result = TypeVar("Result")

_ATTEMPTS = 6
_BACKOFF_SECONDS = 0.5
_MAX_BACKOFF_SECONDS = 30.0
_TEMPORARY_STATUS = frozenset({408, 425, 429})
_LASTING = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
_ABSENT_STATUS = frozenset({404, 410})
_BLOCK = 1 << 20
_SILENCE_SECONDS = 60.0
_NAME_CHARS = 100


def retrying(action: Callable[[], Result]) -> Result:
    """Call `action` until it ends well, a few times, waiting longer each time.

    What another attempt cannot change (nothing is there, no permission, a full disk, any other HTTP
    status from 400 to 499) is raised at once.
    """
    attempts = Retrying(
        stop=stop_after_attempt(_ATTEMPTS),
        wait=wait_exponential(_BACKOFF_SECONDS, _MAX_BACKOFF_SECONDS)
        + wait_random(0, _BACKOFF_SECONDS),
        retry=retry_if_exception(_is_temporary),
        reraise=True,
    )
    return attempts(lambda: _told_apart(action))


def local_file(url: str, cache_dir: str, checksum: str = "") -> Path:
    """Return a local path with the content of `url`, downloading it once when it is remote.

    A download is kept under `cache_dir` by URL and version (the store's size, ETag or time). One
    that breaks off goes on where it stopped, in this process or the next, and appears under its
    name only when it is whole and passes its checksum.

    Args:
        url: Local path or fsspec URL.
        cache_dir: Local folder for downloads.
        checksum: What the content must hash to, "md5:..." or "sha256:..."; empty: not known.

    Raises:
        PetsError: Nothing lies at `url`, it cannot be read, fewer bytes came than were promised,
            or the checksum is another.
    """
    fs, path = storage.filesystem(url)
    if storage.is_local(fs):
        if not Path(path).is_file():
            raise PetsError(f"{url} does not exist")
        verify(Path(path), checksum, url)
        return Path(path)
    info = _info(fs, path, url)
    # HTTP's ukey is the URL alone.
    told = [info.get(name) for name in ("size", "ETag", "Last-Modified")]
    version = sha256(repr((url, fs.ukey(path), *told, checksum)).encode()).hexdigest()[:24]
    # A signed URL's query may be longer than a file's name.
    name = path.partition("?")[0].rsplit("/", 1)[-1][-_NAME_CHARS:]
    target = Path(cache_dir).expanduser() / "downloads" / f"{version}-{name}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with lock_of(target):
        if not target.exists():
            sweep(target.parent)
            _download(fs, path, info, target, url, checksum)
        mark_used(target)
    return target


def forget_download(path: Path, cache_dir: str) -> None:
    """Remove a downloaded file that proved damaged, so that the next run fetches it again."""
    if path.is_relative_to(Path(cache_dir).expanduser() / "downloads"):
        path.unlink(missing_ok=True)


def verify(path: Path, checksum: str, name: str) -> None:
    """Compare a file with its checksum, "md5:..." or "sha256:..."; an empty one is not compared.

    Raises:
        PetsError: They differ; `name` says of what.
    """
    if not checksum:
        return
    algorithm, _, wanted = checksum.partition(":")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, algorithm).hexdigest()
    if found != wanted.lower():
        raise PetsError(
            f"{name}: its {algorithm} is {found}, expected {wanted}: it is damaged or another "
            "version; fetch it again, or mend source.checksums"
        )


def _info(fs: Any, path: str, url: str) -> dict[str, Any]:
    with telling(f"{url} cannot be reached"):
        try:
            return retrying(lambda: dict(fs.info(path)))
        except FileNotFoundError as error:
            raise PetsError(f"{url} does not exist") from tellable(error)


def _download(
    fs: Any, path: str, info: dict[str, Any], target: Path, url: str, checksum: str
) -> None:
    partial = target.with_name(f"{target.name}.partial")
    kept = "what came is kept, and the next run goes on from there"
    with (
        telling(f"{url}: the download failed ({kept})"),
        explain_full_disk(str(partial), "cache_dir"),
    ):
        retrying(lambda: _fetch(fs, path, info, partial))
    try:
        verify(partial, checksum, url)
    except PetsError:
        partial.unlink()
        raise
    partial.replace(target)


def _fetch(fs: Any, path: str, info: dict[str, Any], partial: Path) -> None:
    """Append what is still lacking; what is there already is of the same version."""
    size = info.get("size")
    received = partial.stat().st_size if partial.exists() else 0
    if received and received == size:
        return
    if size is None or received > size:
        received = 0
    with _open_at(fs, path, info, received) as source:
        received = source.tell()
        with partial.open("r+b" if received else "wb") as sink:
            sink.seek(received)
            while block := source.read(_BLOCK):
                sink.write(block)
                received += len(block)
    if size is not None and received != size:
        raise ConnectionError(f"{received} bytes came of {size} promised")


def _open_at(fs: Any, path: str, info: dict[str, Any], start: int) -> Any:
    """Open at byte `start`, or at 0 where the store cannot; the file tells at which."""
    from aiohttp import ClientTimeout
    from fsspec.implementations.http import HTTPFileSystem

    if not isinstance(fs, HTTPFileSystem):
        source = fs.open(path, "rb", block_size=_BLOCK)
        if source.seekable():
            source.seek(start)
        return source
    # One stream: fsspec's seekable file fails where a server ignores Range, and keeps no part of a
    # block that breaks off.
    headers = {**fs.kwargs.get("headers", {}), "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if tag := _validator(info):
            headers["If-Range"] = tag
    timeout = ClientTimeout(total=None, sock_read=_SILENCE_SECONDS)
    # With a size, fsspec does not ask for it once more.
    source = fs.open(path, "rb", block_size=0, size=1, headers=headers, timeout=timeout)
    source.loc = start if source.r.status == 206 else 0
    return source


def _validator(info: dict[str, Any]) -> str | None:
    """What tells a server which version a range must be of; a weak ETag may not."""
    tag = info.get("ETag")
    return tag if tag and not tag.startswith("W/") else info.get("Last-Modified")


def _told_apart(action: Callable[[], Result]) -> Result:
    """Call `action`; to fsspec, whatever keeps it from a file's size over HTTP is a missing file.

    Raises:
        aiohttp.ClientError: It was not that the file is missing.
    """
    try:
        return action()
    except FileNotFoundError as error:
        from aiohttp import ClientError

        cause = error.__cause__
        if (
            isinstance(cause, ClientError | TimeoutError)
            and getattr(cause, "status", None) not in _ABSENT_STATUS
        ):
            raise cause from None
        raise


def _is_temporary(error: BaseException) -> bool:
    if isinstance(error, _LASTING):
        return False
    status = getattr(error, "status", None)
    if isinstance(status, int) and 400 <= status < 500:
        return status in _TEMPORARY_STATUS
    return isinstance(error, Exception) and is_retryable(error)
