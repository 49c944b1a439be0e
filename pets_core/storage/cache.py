"""Locks, use times and removal of files under cache_dir."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from filelock import FileLock, Timeout

__all__ = ["UNUSED_DAYS", "get_lock", "mark_used", "remove_unused"]

UNUSED_DAYS = 14
"""Days after which an unused cached file is removed. Longer than an ingest, because a task may read
a file that was opened when the ingest started."""
_KEY_CHARS = 24


def get_lock(path: Path) -> FileLock:
    """Return the lock shared by all cached files of a folder with the same 24-character key."""
    return FileLock(path.with_name(f"{path.name[:_KEY_CHARS]}.lock"))


def mark_used(path: Path) -> None:
    """Set a file's access time to now; the caller holds its lock.

    The modification time stays, as it identifies the version of an archive. Most disks are mounted
    so that reading updates the access time at most once a day.
    """
    # A shared cache may contain files of other users: their access time is left to the disk.
    with contextlib.suppress(PermissionError):
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))


def remove_unused(folder: Path) -> None:
    """Remove files in `folder` that are unused for `UNUSED_DAYS`.

    The size is not limited: with a limit below the needs of a run, it would download without end.
    """
    limit = time.time() - UNUSED_DAYS * 86_400
    for path in folder.iterdir():
        # A lock file removed while another process waits for it no longer locks; it is empty.
        if path.suffix == ".lock" or _last_used(path) >= limit:
            continue
        # A process that is opening the file holds its lock, so the file is in use.
        with contextlib.suppress(Timeout, PermissionError), get_lock(path).acquire(timeout=0):
            if _last_used(path) < limit:
                path.unlink()


def _last_used(path: Path) -> float:
    """Return the last use, seconds since 1970; infinite if another process removed the file."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return float("inf")
    return max(status.st_atime, status.st_mtime)
