"""Cached downloads of remote files: retried, resumed and verified."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from tenacity import (
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    stop_after_delay,
    stop_all,
    stop_any,
    wait_exponential,
    wait_random,
)

from pets_core import storage
from pets_core.errors import PetsError, explain_full_disk, is_retryable, safe_cause, wrap_errors
from pets_core.storage.cache import get_lock, mark_used, remove_unused

__all__ = ["call_with_retries", "forget_download", "local_file", "verify_checksum"]

Result = TypeVar("Result")

_ATTEMPTS = 6
_BACKOFF_SECONDS = 0.5
_MAX_BACKOFF_SECONDS = 30.0
_LAST_ATTEMPT_SECONDS = 60.0
"""Time after which no third attempt begins: gcsfs alone retries for half a minute."""
_TEMPORARY_STATUS = frozenset({408, 425, 429})
_PERMANENT_ERRORS = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
_ABSENT_STATUS = frozenset({404, 410})
_BLOCK_BYTES = 1 << 20
_READ_TIMEOUT_SECONDS = 60.0
_NAME_CHARS = 100


def call_with_retries(
    action: Callable[[], Result], last_attempt_seconds: float = _LAST_ATTEMPT_SECONDS
) -> Result:
    """Call `action` with retries and exponential backoff.

    Errors that a retry cannot fix are raised immediately: missing files, no permission, a full
    disk, and HTTP statuses 400 to 499 except 408, 425 and 429.

    Args:
        action: The call.
        last_attempt_seconds: Time since the first attempt after which no third one begins.
    """
    attempts = Retrying(
        stop=stop_any(
            stop_after_attempt(_ATTEMPTS),
            # One request may time out after minutes.
            stop_all(stop_after_attempt(2), stop_after_delay(last_attempt_seconds)),
        ),
        wait=wait_exponential(_BACKOFF_SECONDS, _MAX_BACKOFF_SECONDS)
        + wait_random(0, _BACKOFF_SECONDS),
        retry=retry_if_exception(_is_temporary),
        reraise=True,
    )
    return attempts(lambda: _unwrap_http_error(action))


def local_file(url: str, cache_dir: str, checksum: str = "") -> Path:
    """Return a local path with the content of `url`; a remote file is downloaded once.

    Downloads are cached under `cache_dir` by URL and version (size, ETag or time in the store). An
    interrupted download is resumed by this process or the next. It appears under its final name
    only when it is complete and its checksum matches.

    Args:
        url: Local path or fsspec URL.
        cache_dir: Local folder for downloads.
        checksum: Expected checksum, such as "md5:..." or "sha256:..."; empty: not verified.

    Raises:
        PetsError: The file does not exist, cannot be read, is shorter than its size in the store,
            or has another checksum.
    """
    fs, path = storage.filesystem(url)
    if storage.is_local(fs):
        if not Path(path).is_file():
            raise PetsError(f"{url} does not exist")
        verify_checksum(Path(path), checksum, url)
        return Path(path)
    info = _info(fs, path, url)
    # fsspec's ukey of an HTTP file depends on the URL only.
    state = [info.get(name) for name in ("size", "ETag", "Last-Modified")]
    version = sha256(repr((url, fs.ukey(path), *state, checksum)).encode()).hexdigest()[:24]
    # The query of a signed URL may exceed the maximum length of a file name.
    name = path.partition("?")[0].rsplit("/", 1)[-1][-_NAME_CHARS:]
    target = Path(cache_dir).expanduser() / "downloads" / f"{version}-{name}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with get_lock(target):
        if not target.exists():
            remove_unused(target.parent)
            _download(fs, path, info, target, url, checksum)
        mark_used(target)
    return target


def forget_download(path: Path, cache_dir: str) -> None:
    """Remove a damaged download, so that the next run downloads it again."""
    if path.is_relative_to(Path(cache_dir).expanduser() / "downloads"):
        path.unlink(missing_ok=True)


def verify_checksum(path: Path, checksum: str, name: str) -> None:
    """Verify the checksum of a file, such as "md5:..." or "sha256:..."; empty: not verified.

    Raises:
        PetsError: The checksum differs; the message starts with `name`.
    """
    if not checksum:
        return
    algorithm, _, expected = checksum.partition(":")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, algorithm).hexdigest()
    if found != expected.lower():
        raise PetsError(
            f"{name}: its {algorithm} is {found}, expected {expected}: the file is damaged or "
            "another version. Download it again, or correct source.checksums"
        )


def _info(fs: Any, path: str, url: str) -> dict[str, Any]:
    with wrap_errors(f"{url} cannot be reached"):
        try:
            return call_with_retries(lambda: dict(fs.info(path)))
        except FileNotFoundError as error:
            raise PetsError(f"{url} does not exist") from safe_cause(error)


def _download(
    fs: Any, path: str, info: dict[str, Any], target: Path, url: str, checksum: str
) -> None:
    partial = target.with_name(f"{target.name}.partial")
    with (
        wrap_errors(f"{url}: the download failed (the next run resumes it)"),
        explain_full_disk(str(partial), "cache_dir"),
    ):
        # A long download may fail late; each attempt continues where the last one failed.
        call_with_retries(lambda: _resume(fs, path, info, partial), math.inf)
    try:
        verify_checksum(partial, checksum, url)
    except PetsError:
        partial.unlink()
        raise
    partial.replace(target)


def _resume(fs: Any, path: str, info: dict[str, Any], partial: Path) -> None:
    """Append the missing bytes to a partial download of the same version."""
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
            while block := source.read(_BLOCK_BYTES):
                sink.write(block)
                received += len(block)
    if size is not None and received != size:
        raise ConnectionError(f"received {received} of {size} bytes")


def _open_at(fs: Any, path: str, info: dict[str, Any], start: int) -> Any:
    """Open a file at byte `start`, or at byte 0 if the store cannot seek.

    The position of the returned file is where it begins.
    """
    from aiohttp import ClientTimeout
    from fsspec.implementations.http import HTTPFileSystem

    if not isinstance(fs, HTTPFileSystem):
        source = fs.open(path, "rb", block_size=_BLOCK_BYTES)
        if source.seekable():
            source.seek(start)
        return source
    # Use one stream: fsspec's seekable file fails if a server ignores Range, and loses a partly
    # received block if the connection breaks.
    headers = {**fs.kwargs.get("headers", {}), "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if tag := _range_validator(info):
            headers["If-Range"] = tag
    timeout = ClientTimeout(total=None, sock_read=_READ_TIMEOUT_SECONDS)
    # With any size, whose value is not used, fsspec does not request the size again.
    source = fs.open(path, "rb", block_size=0, size=1, headers=headers, timeout=timeout)
    source.loc = start if source.r.status == 206 else 0
    return source


def _range_validator(info: dict[str, Any]) -> str | None:
    """Return the If-Range validator of a version: a strong ETag or the modification time."""
    tag = info.get("ETag")
    return tag if tag and not tag.startswith("W/") else info.get("Last-Modified")


def _unwrap_http_error(action: Callable[[], Result]) -> Result:
    """Call `action` and raise the HTTP error that fsspec reports as a missing file.

    fsspec raises FileNotFoundError for any error while it requests the size of a file.

    Raises:
        aiohttp.ClientError: The request failed for another reason than a missing file.
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
    if isinstance(error, _PERMANENT_ERRORS):
        return False
    status = getattr(error, "status", None)
    if isinstance(status, int) and 400 <= status < 500:
        return status in _TEMPORARY_STATUS
    return isinstance(error, Exception) and is_retryable(error)
