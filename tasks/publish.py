"""Artifacts in the Prefect UI: how they are made, and what becomes of a run when they cannot be."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from types import TracebackType
from typing import Any

from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact, create_table_artifact

from pets_core import storage

__all__ = ["MAX_BYTES", "Publisher", "jpeg", "literal", "picture", "table"]

MAX_BYTES = 300_000
"""An artifact beyond this makes the UI slow: its lists fetch all of them."""
_MAX_ROWS = 500


class Publisher:
    """Makes artifacts of the present task run; a server that fails ends nothing.

    What could not be made is told of at the end of the context, in one line. After the first
    failure no other is tried: a server that is away makes each wait for half a minute.

    Args:
        kept: Where all that is published lies in the store.
    """

    def __init__(self, kept: str) -> None:
        self._kept = kept
        self._missing: list[str] = []
        self._error: Exception | None = None

    def __enter__(self) -> Publisher:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._missing:
            get_run_logger().warning(
                "not published in the Prefect UI: %s (%s: %s); all of it is in %s",
                ", ".join(self._missing), type(self._error).__name__, self._error, self._kept,
            )  # fmt: skip

    def markdown(self, key: str, content: str, description: str) -> None:
        """Make a markdown artifact."""
        self._try(key, create_markdown_artifact, markdown=content, description=description)

    def table(self, key: str, rows: Sequence[Mapping[str, Any]], description: str) -> None:
        """Make a table artifact; of very many rows the first."""
        if len(rows) > _MAX_ROWS:
            description += f"; the first {_MAX_ROWS} of {len(rows)} rows"
        shown = [dict(row) for row in rows[:_MAX_ROWS]]
        self._try(key, create_table_artifact, table=shown, description=description)

    def _try(self, key: str, create: Any, **content: Any) -> None:
        if self._error is None:
            try:
                create(key=key, **content)
            except Exception as error:  # noqa: BLE001 - whatever it is, the work is done and stored
                self._error = error
            else:
                return
        self._missing.append(key)


def jpeg(data: bytes, alt: str) -> str:
    """A JPEG inside markdown."""
    return f"![{alt}](data:image/jpeg;base64,{base64.b64encode(data).decode()})"


def picture(url: str, alt: str) -> str:
    """A stored PNG inside markdown."""
    data = base64.b64encode(storage.read_bytes(url)).decode()
    return f"![{alt}](data:image/png;base64,{data})"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def literal(value: str) -> str:
    """A name as markdown shows it literally: no markup, no table cell's end."""
    safe = escape(" ".join(value.split()))
    for mark in "\\`*_[]|#":
        safe = safe.replace(mark, f"\\{mark}")
    return safe
