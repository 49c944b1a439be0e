"""Publishes artifacts in the Prefect UI without failing the run, and formats their markdown."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import httpx
from PIL import Image
from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact, create_table_artifact

from pets_core import storage
from pets_core.storage.markdown import escape_markdown

__all__ = [
    "MAX_BYTES",
    "Publisher",
    "jpeg",
    "photo",
    "png",
    "stored_png",
    "table",
    "truncated",
]

MAX_BYTES = 300_000
"""Larger artifacts slow down the UI, whose lists fetch all artifacts."""
_MAX_ROWS = 500
_MAX_PNG_BYTES = 190_000
_COLOURS = 64


class Publisher:
    """Context manager that creates artifacts of the current task run.

    Errors of the server do not fail the run: one warning at the end lists the missing artifacts.
    Once the server is unreachable, later artifacts are skipped, since each would wait 30 seconds.

    Args:
        url: URL in the store of the data that is published.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._missing: list[str] = []
        self._error: Exception | None = None
        self._is_unreachable = False

    def __enter__(self) -> Publisher:
        return self

    def __exit__(self, *_: object) -> None:
        if self._missing:
            get_run_logger().warning(
                "Artifacts not published in the Prefect UI: %s (%s: %s); see %s",
                ", ".join(self._missing), type(self._error).__name__, self._error, self._url,
            )  # fmt: skip

    def markdown(self, key: str, content: str, description: str) -> None:
        """Create a markdown artifact."""
        self._create(key, create_markdown_artifact, markdown=content, description=description)

    def table(
        self, key: str, rows: Sequence[Mapping[str, Any]], description: str, full_url: str = ""
    ) -> None:
        """Create a table artifact, truncated to the size of an artifact.

        Args:
            key: Key of the artifact.
            rows: Cells by column. Text is escaped, since the UI renders it as markdown.
            description: Description of the artifact.
            full_url: URL of the table with all rows.
        """
        shown = _truncated_rows(rows)
        if len(shown) < len(rows):
            description += f"; first {len(shown)} of {len(rows)} rows"
            description += f", all rows: {full_url}" if full_url else ""
        self._create(key, create_table_artifact, table=shown, description=description)

    def _create(self, key: str, create: Any, **content: Any) -> None:
        if not self._is_unreachable:
            try:
                create(key=key, **content)
            except Exception as error:  # noqa: BLE001 - the results are stored; publishing may fail
                self._error = self._error or error
                # A server that responds with an error may accept the next artifact.
                self._is_unreachable = not isinstance(error, httpx.HTTPStatusError)
            else:
                return
        self._missing.append(key)


def _truncated_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the first rows, as many as fit in an artifact, with text escaped."""
    shown: list[dict[str, Any]] = []
    size = 0
    for row in rows[:_MAX_ROWS]:
        cells = {
            k: escape_markdown(cell) if isinstance(cell, str) else cell for k, cell in row.items()
        }
        size += len(json.dumps(cells)) + 2
        if size > MAX_BYTES - 1000:
            break
        shown.append(cells)
    return shown


def jpeg(data: bytes, alt: str) -> str:
    """Return markdown of an inline JPEG."""
    return f"![{alt}](data:image/jpeg;base64,{base64.b64encode(data).decode()})"


def photo(data: bytes | None) -> str:
    """Return markdown of an inline photo, or a placeholder if the photo is unavailable."""
    return jpeg(data, "photo") if data else "(photo unavailable)"


def stored_png(url: str, alt: str) -> str:
    """Return markdown of an inline PNG that is read from `url`."""
    return png(storage.read_bytes(url), alt)


def png(data: bytes, alt: str) -> str:
    """Return markdown of an inline PNG; a large one gets fewer colours and pixels."""
    if len(data) > _MAX_PNG_BYTES:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        while len(data) > _MAX_PNG_BYTES:
            buffer = io.BytesIO()
            image.quantize(_COLOURS, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
            data = buffer.getvalue()
            image = image.resize((image.width * 4 // 5, image.height * 4 // 5))
    return f"![{alt}](data:image/png;base64,{base64.b64encode(data).decode()})"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def truncated(head: str, rows: Iterable[str]) -> str:
    """Return markdown of the head and as many rows as fit in an artifact."""
    content, num_omitted = head, 0
    for row in rows:
        if len(content) + len(row) < MAX_BYTES - 100:
            content += row
        else:
            num_omitted += 1
    return content + (f"\n{num_omitted} more are in the report.\n" if num_omitted else "")
