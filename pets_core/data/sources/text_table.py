"""Read CSV and similar text tables: format detection, row validation, chunked reading.

Example:
    >>> table = open_text_table(path, columns=["image", "label"])
    >>> table.format.delimiter, table.format.encoding, table.names
    (';', 'utf-8', ['image', 'label', 'split'])
    >>> table.read(["image", "label"])  # a pyarrow table of strings
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, NoReturn, cast

import numpy as np
import pyarrow as pa

from pets_core.data.sources.text_format import (
    TextFormat,
    TextOptions,
    count_columns,
    detect_delimiter,
    detect_encoding,
    find_undecodable_line,
    has_blanks_before_quotes,
    is_blank,
    is_complete,
    large_cells,
)
from pets_core.errors import PetsError

__all__ = ["TextFormat", "TextOptions", "TextTable", "open_text_table"]

_CHUNK_ROWS = 100_000
_BLOCK = 1 << 20
_OTHER_FILES = {
    b"PK\x03\x04": "compressed",
    b"\x1f\x8b\x08": "compressed",
    b"BZh": "compressed",
    b"\xfd7zXZ": "compressed",
    b"\x28\xb5\x2f\xfd": "compressed",
    b"PAR1": "a Parquet file",
}


@dataclass(frozen=True)
class TextTable:
    """A validated text table; see `open_text_table`.

    Attributes:
        path: Path of the file.
        format: Delimiter, encoding and quoting.
        names: Column names from left to right, without surrounding whitespace; "column 1",
            "column 2", ... without a header.
        first_row: Cells of the first row: the header, or without one the first values.
        num_header_lines: Number of lines before the first row of values.
    """

    path: Path
    format: TextFormat
    names: list[str]
    first_row: list[str]
    num_header_lines: int

    def chunks(self, positions: Sequence[int], coded: Collection[int] = ()) -> Iterator[pa.Table]:
        """Yield the rows of columns in chunks.

        Cells are unconverted text: an empty cell is "", and `NA` and `01` stay unchanged.

        Args:
            positions: Positions of the columns, in any order.
            coded: Positions of columns to read as dictionary<int32, string>, which saves memory if
                values repeat. Each chunk has its own dictionary.

        Yields:
            Tables of strings; none if the file has no rows.
        """
        # Imported lazily: pandas takes half a second, and the command line starts without it.
        import pandas as pd

        with self.format.open(self.path) as text:
            for _ in range(self.num_header_lines):
                text.readline()
            try:
                frames = pd.read_csv(
                    cast(IO[str], text),
                    sep=self.format.character,
                    quoting=self.format.quoting,
                    header=None,
                    index_col=False,
                    skipinitialspace=self.format.skips_blanks,
                    usecols=sorted(set(positions)),
                    dtype=str,
                    na_filter=False,
                    chunksize=_CHUNK_ROWS,
                    low_memory=False,
                )
            except pd.errors.EmptyDataError:
                return
            with frames:
                for frame in frames:
                    arrays = []
                    for position in positions:
                        array = pa.array(frame[position], pa.string())
                        arrays.append(array.dictionary_encode() if position in coded else array)
                    yield pa.table(arrays, [self.names[position] for position in positions])

    def read(self, columns: Sequence[str]) -> pa.Table:
        """Return all rows of some columns, as strings.

        Args:
            columns: Names that are in `names` exactly once.
        """
        positions = [self.names.index(name) for name in columns]
        if chunks := list(self.chunks(positions)):
            return pa.concat_tables(chunks)
        return pa.table({name: pa.array([], pa.string()) for name in columns})


def open_text_table(
    path: Path,
    columns: Collection[str] = (),
    *,
    has_header: bool | Callable[[list[str]], bool] = True,
    options: TextOptions | None = None,
    url: str = "",
) -> TextTable:
    """Detect the format of a text table and check that every row has all columns.

    Reads the file once, in blocks. Ignores whitespace around the names of the header, a trailing
    delimiter and blank lines.

    Args:
        path: Local file.
        columns: Expected column names, all or some. The delimiter with the most matches is used.
        has_header: Whether the first row contains the column names, or a function that decides
            this from its cells.
        options: Configured parts of the format, and the prefix of these settings in messages.
        url: Name of the file in messages; empty: its path.

    Raises:
        PetsError: The file is empty or compressed, has NUL or undecodable bytes, or a row has too
            few or too many cells. The message contains the line, the format and the settings.
    """
    url = url or str(path)
    options = options or TextOptions()
    _check_file_type(path, url)
    encoding, bom_length = detect_encoding(path, options)
    found = TextFormat(",", encoding, bom_length)
    try:
        found = detect_delimiter(path, found, options, columns)
        with suppress(csv.Error):
            found = replace(found, skips_blanks=has_blanks_before_quotes(path, found))
        return _check(path, url, found, has_header)
    except _RowError as error:
        if options.quoting is None and found.is_quoted and found.delimiter in "\t|":
            with suppress(_RowError):
                return _check(path, url, replace(found, is_quoted=False), has_header)
        _raise_error(f"{url}: {error}", found, options)
    except UnicodeError as error:
        line = find_undecodable_line(path, found)
        _raise_error(f"{url}: line {line} is not valid {encoding} ({error})", found, options)


class _RowError(Exception):
    """A line is not a valid row. Converted to a `PetsError` with the file and the settings."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(f"line {line} {text}")


def _check_file_type(path: Path, url: str) -> None:
    with path.open("rb") as file:
        head = file.read(8)
    for start, kind in _OTHER_FILES.items():
        if head.startswith(start):
            remedy = "Decompress it, or use a URL such as zip://table.csv::https://.../a.zip"
            if kind != "compressed":
                remedy = "Rename it so that its name ends in .parquet"
            raise PetsError(f"{url} is {kind}. {remedy}")


def _check(
    path: Path, url: str, found: TextFormat, has_header: bool | Callable[[list[str]], bool]
) -> TextTable:
    """Validate all rows.

    Raises:
        _RowError: A line is not a valid row.
    """
    num_lines, first_row = _first_row(path, found)
    if not first_row:
        raise PetsError(f"{url} is empty. Use another file")
    is_header = has_header(first_row) if callable(has_header) else has_header
    num_columns = count_columns(first_row, is_header)
    _RowCheck(found, first_row, num_columns).check(path)
    names = [f"column {n}" for n in range(1, num_columns + 1)]
    if is_header:
        names = [name.strip() for name in first_row[:num_columns]]
    return TextTable(path, found, names, first_row, num_lines if is_header else 0)


def _raise_error(problem: str, found: TextFormat, options: TextOptions) -> NoReturn:
    prefix = options.prefix
    raise PetsError(
        f"{problem} (read with {found}). Correct the file, or set {prefix}delimiter, "
        f"{prefix}encoding or {prefix}quoting"
    ) from None


def _first_row(path: Path, found: TextFormat) -> tuple[int, list[str]]:
    """Return the number of the last line of the first row, and its cells; 0, [] if empty."""
    with found.open(path) as text, large_cells():
        try:
            for line, row in found.rows(text):
                if not is_blank(row):
                    return line, row
        except csv.Error as error:
            raise _RowError(1, f"has invalid CSV quoting: {error}") from error
    return 0, []


@dataclass(frozen=True)
class _RowCheck:
    """Check that each row has one cell per column."""

    format: TextFormat
    first_row: list[str]
    num_columns: int

    def check(self, path: Path) -> None:
        """Check all rows. NumPy checks blocks without quotes, 20 times as fast as the csv module.

        Raises:
            _RowError: The first invalid line.
        """
        line = 1
        with self.format.open(path) as text:
            while block := text.read(_BLOCK) + text.readline():
                self._check_no_nul(block, line)
                has_quotes = self.format.is_quoted and '"' in block
                if has_quotes or "\r" in block.replace("\r\n", ""):
                    break
                line += self._check_block(block.encode(), line)
            else:
                return
        with self.format.open(path) as text, large_cells():
            self._check_rows(text)

    def _check_block(self, block: bytes, first_line: int) -> int:
        """Check complete lines without quotes, and return their number."""
        data = block if block.endswith(b"\n") else block + b"\n"
        characters = np.frombuffer(data, np.uint8)
        ends = np.flatnonzero(characters == ord("\n"))
        delimiters = np.flatnonzero(characters == ord(self.format.character))
        num_before = np.searchsorted(delimiters, ends)
        num_cells = np.diff(num_before, prepend=0) + 1
        for index in np.flatnonzero(num_cells != self.num_columns):
            start = ends[index - 1] + 1 if index else 0
            line = data[start : ends[index]].rstrip(b"\r").decode()
            self._check_row(line.split(self.format.character), first_line + int(index))
        return len(ends)

    def _check_rows(self, text: Iterable[str]) -> None:
        def lines() -> Iterator[str]:
            for number, line in enumerate(text, 1):
                self._check_no_nul(line, number)
                yield line

        last_line = 0
        try:
            for line, row in self.format.rows(lines()):
                if len(row) != self.num_columns:
                    self._check_row(row, last_line + 1)
                last_line = line
        except csv.Error as error:
            raise _RowError(last_line + 1, f"has invalid CSV quoting: {error}") from error

    def _check_row(self, row: list[str], line: int) -> None:
        if not (is_blank(row) or is_complete(row, self.first_row, self.num_columns)):
            raise _RowError(line, f"has {len(row)} column(s), expected {self.num_columns}")

    def _check_no_nul(self, text: str, first_line: int) -> None:
        if "\0" in text:
            line = first_line + text[: text.index("\0")].count("\n")
            raise _RowError(line, "has a NUL character")
