"""Check that the folders of this machine that a command writes to can be written."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefect.settings import get_current_settings

from pets_core import storage
from pets_core.errors import PetsError

__all__ = ["check_database", "check_folders"]

_SQLITE = "sqlite+aiosqlite:///"
_NEW_DATABASE_BYTES = 2 << 20


def check_folders(*, cache_dir: str | None, is_serving: bool) -> None:
    """Check all folders, so that one error names everything that is to be set.

    Args:
        cache_dir: The setting; None where the command writes nothing there.
        is_serving: Whether the command starts a Prefect server.

    Raises:
        PetsError: One of them cannot be written.
    """
    faults: list[str] = []
    if is_serving:
        with _collecting(faults):
            check_database()
    if cache_dir is not None:
        with _collecting(faults):
            storage.check_writable(storage.absolute(cache_dir), "cache_dir")
    if faults:
        raise PetsError("\n".join(faults))


@contextmanager
def _collecting(faults: list[str]) -> Iterator[None]:
    try:
        yield
    except PetsError as error:
        faults.append(str(error))


def check_database() -> None:
    """Check that a Prefect server started here could write its SQLite database, in PREFECT_HOME.

    Writes a file next to it; other databases are not checked.

    A server that cannot write there prints hundreds of lines before it ends. Permission bits alone
    do not show it: root may write where they forbid it, but not on a read-only mount.

    Raises:
        PetsError: Nothing can be written there, or less than a new database takes.
    """
    settings = get_current_settings()
    url = settings.server.database.connection_url
    path = url.get_secret_value().partition("?")[0] if url else ""
    database = Path(path.removeprefix(_SQLITE))
    if not path.startswith(_SQLITE) or database.name in ("", ":memory:"):
        return
    try:
        database.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=database.parent) as probe:
            if not database.exists():
                probe.write(bytes(_NEW_DATABASE_BYTES))
        if database.exists():
            database.open("r+b").close()
    except OSError as error:
        about, remedy = f"PREFECT_HOME = {settings.home}", "PREFECT_HOME to a folder"
        if database.parent != settings.home:
            about = f"PREFECT_SERVER_DATABASE_CONNECTION_URL = {path}"
            remedy = "it to a database"
        raise PetsError(
            f"{about}: cannot be written ({error.strerror}). Set {remedy} that you may write to, "
            "or PREFECT_API_URL to a Prefect server"
        ) from error
