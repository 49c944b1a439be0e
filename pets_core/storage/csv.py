"""CSV files that are safe to open in a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

import pyarrow as pa

__all__ = ["table_csv", "unescape_cell", "write_csv"]

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_TEXT = "'"


def write_csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """Format rows as CSV; text that a spreadsheet would run as a formula gets an apostrophe prefix.

    See OWASP, CSV injection.
    """
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows([_escape_formula(cell) for cell in row] for row in rows)
    return text.getvalue().encode()


def table_csv(table: pa.Table) -> bytes:
    """Format a table with a header as CSV; see `write_csv`."""
    rows = zip(*(column.to_pylist() for column in table.columns), strict=True)
    return write_csv(table.column_names, rows)


def unescape_cell(cell: str) -> str:
    """Return the original text of a cell that `write_csv` wrote."""
    return cell[1:] if cell.startswith(_TEXT) and cell[1:].startswith(_FORMULA) else cell


def _escape_formula(cell: object) -> object:
    return _TEXT + cell if isinstance(cell, str) and cell.startswith(_FORMULA) else cell
