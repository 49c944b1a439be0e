"""Remote files, brought to this machine once: retried, resumed, verified."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from pets_core import storage
from pets_core.errors import PetsError

__all__ = ["forget_download", "local_file", "retrying", "verify"]

Result = TypeVar("Result")

_ATTEMPTS = 6
_BACKOFF_SECONDS = 0.5
_MAX_BACKOFF_SECONDS = 30.0
_TEMPORARY_STATUS = frozenset({408, 425, 429})
_BLOCK = 1 << 20


def retrying(action: Callable[[], Result]) -> Result:
    """Call `action` until it ends well, a few times, waiting longer each time.

    What another attempt cannot mend (nothing is there, no permission, any other HTTP status from
    400 to 499) is raised at once.
    """
    attempts = Retrying(
        stop=stop_after_attempt(_ATTEMPTS),
        wait=wait_exponential_jitter(
            _BACKOFF_SECONDS, _MAX_BACKOFF_SECONDS, jitter=_BACKOFF_SECONDS
        ),
        retry=retry_if_exception(_is_temporary),
        reraise=True,
    )
    return attempts(action)


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
    marks = (url, fs.ukey(path), info.get("size"), info.get("ETag"))
    version = sha256(repr(marks).encode()).hexdigest()[:24]
    target = Path(cache_dir).expanduser() / "downloads" / f"{version}-{path.rsplit('/', 1)[-1]}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.exists():
            _download(fs, path, info.get("size"), target, url, checksum)
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
    try:
        return retrying(lambda: dict(fs.info(path)))
    except FileNotFoundError as error:
        raise PetsError(f"{url} does not exist") from error
    except Exception as error:
        raise PetsError(f"{url} cannot be reached: {type(error).__name__}: {error}") from error


def _download(fs: Any, path: str, size: int | None, target: Path, url: str, checksum: str) -> None:
    partial = target.with_name(f"{target.name}.partial")
    try:
        retrying(lambda: _fetch(fs, path, size, partial))
    except Exception as error:
        # Each store's driver has its own; HTTP's are no OSError.
        raise PetsError(
            f"{url}: the download failed ({type(error).__name__}: {error}); what came is kept, "
            "and the next run goes on from there"
        ) from error
    try:
        verify(partial, checksum, url)
    except PetsError:
        partial.unlink()
        raise
    partial.replace(target)


def _fetch(fs: Any, path: str, size: int | None, partial: Path) -> None:
    """Append what is still lacking; what is there already is of the same version."""
    received = partial.stat().st_size if partial.exists() else 0
    if size is not None and received > size:
        received = 0
    with fs.open(path, "rb", block_size=_BLOCK) as source:
        if received and source.seekable():
            source.seek(received)
        else:
            received = 0
        with partial.open("r+b" if received else "wb") as sink:
            sink.seek(received)
            while block := source.read(_BLOCK):
                sink.write(block)
                received += len(block)
    if size is not None and received != size:
        raise ConnectionError(f"{received} bytes came of {size} promised")


def _is_temporary(error: BaseException) -> bool:
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError | PetsError):
        return False
    status = getattr(error, "status", None)
    if isinstance(status, int) and 400 <= status < 500:
        return status in _TEMPORARY_STATUS
    return isinstance(error, Exception) and not isinstance(error, TypeError | ValueError)
