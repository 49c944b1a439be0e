"""Artifacts in the Prefect UI: how they are made, and what becomes of a run when they cannot be."""

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
from pets_core.records.evaluation import EvalReport
from pets_core.storage.markdown import literal

__all__ = [
    "MAX_BYTES",
    "Publisher",
    "jpeg",
    "links",
    "photo",
    "picture",
    "picture_of",
    "table",
    "within",
]

MAX_BYTES = 300_000
"""An artifact beyond this makes the UI slow: its lists fetch all of them."""
_MAX_ROWS = 500
_MAX_PICTURE = 190_000
_COLOURS = 64


class Publisher:
    """Makes artifacts of the present task run; a server that fails ends nothing.

    What could not be made is told of at the end of the context, in one line. After the server was
    out of reach once, no other is tried: each would wait for half a minute.

    Args:
        kept: Where all that is published lies in the store.
    """

    def __init__(self, kept: str) -> None:
        self._kept = kept
        self._missing: list[str] = []
        self._error: Exception | None = None
        self._away = False

    def __enter__(self) -> Publisher:
        return self

    def __exit__(self, *_: object) -> None:
        if self._missing:
            get_run_logger().warning(
                "not published in the Prefect UI: %s (%s: %s); all of it is in %s",
                ", ".join(self._missing), type(self._error).__name__, self._error, self._kept,
            )  # fmt: skip

    def markdown(self, key: str, content: str, description: str) -> None:
        """Make a markdown artifact."""
        self._try(key, create_markdown_artifact, markdown=content, description=description)

    def table(
        self, key: str, rows: Sequence[Mapping[str, Any]], description: str, whole: str = ""
    ) -> None:
        """Make a table artifact; of more rows than it takes the first.

        Args:
            key: Of the artifact.
            rows: Cells by column; text is shown as it is, though the UI takes it for markdown.
            description: What it shows.
            whole: Where all rows are.
        """
        shown = _fitting(rows)
        if len(shown) < len(rows):
            description += f"; the first {len(shown)} of {len(rows)} rows"
            description += f", all are in {whole}" if whole else ""
        self._try(key, create_table_artifact, table=shown, description=description)

    def _try(self, key: str, create: Any, **content: Any) -> None:
        if not self._away:
            try:
                create(key=key, **content)
            except Exception as error:  # noqa: BLE001 - whatever it is, the work is done and stored
                self._error = self._error or error
                # A server that answered may take the next one.
                self._away = not isinstance(error, httpx.HTTPStatusError)
            else:
                return
        self._missing.append(key)


def _fitting(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The first rows, as many as an artifact takes."""
    shown: list[dict[str, Any]] = []
    size = 0
    for row in rows[:_MAX_ROWS]:
        cells = {k: literal(cell) if isinstance(cell, str) else cell for k, cell in row.items()}
        size += len(json.dumps(cells)) + 2
        if size > MAX_BYTES - 1000:
            break
        shown.append(cells)
    return shown


def jpeg(data: bytes, alt: str) -> str:
    """A JPEG inside markdown."""
    return f"![{alt}](data:image/jpeg;base64,{base64.b64encode(data).decode()})"


def photo(data: bytes | None) -> str:
    """A photo of the data set inside markdown, or a word where it is out of reach."""
    return jpeg(data, "photo") if data else "(photo out of reach)"


def picture(url: str, alt: str) -> str:
    """A stored PNG inside markdown, with fewer colours and pixels where it is too large for it."""
    return picture_of(storage.read_bytes(url), alt)


def picture_of(data: bytes, alt: str) -> str:
    """A PNG inside markdown, with fewer colours and pixels where it is too large for it."""
    if len(data) > _MAX_PICTURE:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        while len(data) > _MAX_PICTURE:
            buffer = io.BytesIO()
            image.quantize(_COLOURS, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
            data = buffer.getvalue()
            image = image.resize((image.width * 4 // 5, image.height * 4 // 5))
    return f"![{alt}](data:image/png;base64,{base64.b64encode(data).decode()})"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def within(head: str, rows: Iterable[str]) -> str:
    """Markdown of as many rows as an artifact takes."""
    content, left_out = head, 0
    for row in rows:
        if len(content) + len(row) < MAX_BYTES - 100:
            content += row
        else:
            left_out += 1
    return content + (f"\n{left_out} more are in the report.\n" if left_out else "")


def links(report: EvalReport, *pages: tuple[str, str]) -> str:
    """Where all that is behind an artifact lies, as a table in markdown.

    Args:
        report: Of the evaluation.
        pages: What each further file is, and its URL.
    """
    lying = [
        ("model", report.model_url), *pages, ("predictions", report.predictions_url),
        ("tables and pictures", report.url),
    ]  # fmt: skip
    return table(["", ""], ([what, f"`{url}`"] for what, url in lying))
