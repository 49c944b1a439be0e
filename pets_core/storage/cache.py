"""What is kept under cache_dir for the next run, and for how long."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from filelock import FileLock, Timeout

__all__ = ["UNUSED_DAYS", "lock_of", "mark_used", "sweep"]

UNUSED_DAYS = 14
"""A file of the cache that no run has opened for so long makes room for new ones. Longer than an
ingest takes, for a task may read what was opened when it began."""
_KEY_CHARS = 24


def lock_of(path: Path) -> FileLock:
    """The lock of a cached file and all that lies beside it under the same 24-letter key."""
    return FileLock(path.with_name(f"{path.name[:_KEY_CHARS]}.lock"))


def mark_used(path: Path) -> None:
    """Note, under the file's lock, that a run opens it now.

    In the time of access, since the time of change says which version of an archive this is; by
    hand, since most disks are mounted so that reading does not note it, or once a day.
    """
    # Of another user's file in a shared cache, what the disk notes has to do.
    with contextlib.suppress(PermissionError):
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))


def sweep(folder: Path) -> None:
    """Remove the files in `folder` that nobody has used for `UNUSED_DAYS`.

    There is no bound on size: one below what a run needs would have it fetch for ever.
    """
    limit = time.time() - UNUSED_DAYS * 86_400
    for path in folder.iterdir():
        # A lock that goes while another process waits for it locks nothing; it takes no room.
        if path.suffix == ".lock" or _last_used(path) >= limit:
            continue
        # Whoever opens it in this moment holds its lock, and it is used then.
        with contextlib.suppress(Timeout, PermissionError), lock_of(path).acquire(timeout=0):
            if _last_used(path) < limit:
                path.unlink()


def _last_used(path: Path) -> float:
    """Seconds since 1970; of a file that another process has swept, never long ago."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return float("inf")
    return max(status.st_atime, status.st_mtime)
