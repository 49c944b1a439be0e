"""Print tables and JSON in the terminal."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic_core import to_jsonable_python

__all__ = ["add_json", "print_json", "print_table"]


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add --json to a command."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def print_json(value: Any) -> None:
    """Print records, or lists and dictionaries of them, as JSON."""
    print(json.dumps(to_jsonable_python(value), indent=2))


def print_table(header: Sequence[str], rows: Iterable[Sequence[object]], indent: int = 0) -> None:
    """Print a header and rows in aligned columns, then an empty line."""
    lines = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        print(
            " " * indent
            + "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
        )
    print()
