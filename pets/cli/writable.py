"""Check that the local folders of a command are writable."""

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
    """Check all folders and raise one error that names every setting to change.

    Args:
        cache_dir: Setting cache_dir; None if the command does not write to it.
        is_serving: Whether the command starts a Prefect server.

    Raises:
        PetsError: A folder is not writable.
    """
    errors: list[str] = []
    if is_serving:
        with _collect_error(errors):
            check_database()
    if cache_dir is not None:
        with _collect_error(errors):
            storage.check_writable(storage.absolute(cache_dir), "cache_dir")
    if errors:
        raise PetsError("\n".join(errors))


@contextmanager
def _collect_error(errors: list[str]) -> Iterator[None]:
    try:
        yield
    except PetsError as error:
        errors.append(str(error))


def check_database() -> None:
    """Check that a local Prefect server could write its SQLite database.

    A server that cannot write prints hundreds of lines before it exits. The check writes a
    temporary file, because permission bits do not suffice: root may write where they forbid it,
    but not on a read-only mount. Other databases are not checked.

    Raises:
        PetsError: The folder is not writable or has no space for a new database.
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
