"""Read CSV and similar text tables: format detection, row validation, chunked reading.

Example:
    >>> table = open_text_table(path, columns=["image", "label"])
    >>> table.format.delimiter, table.format.encoding, table.names
    (';', 'utf-8', ['image', 'label', 'split'])
    >>> for chunk in table.chunks(["image", "label"]):
    ...     ...  # a pyarrow table of strings
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
from pets_core.errors import PetsError, did_you_mean

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
        url: Name of the file in messages.
        format: Delimiter, encoding and quoting.
        names: Column names from left to right, without surrounding whitespace; "column 1",
            "column 2", ... without a header.
        first_row: Cells of the first row: the header, or without one the first values.
        num_header_lines: Number of lines before the first row of values.
    """

    path: Path
    url: str
    format: TextFormat
    names: list[str]
    first_row: list[str]
    num_header_lines: int

    def chunks(
        self,
        columns: Sequence[str | int] | None = None,
        coded: Collection[str | int] = (),
        num_rows: int = _CHUNK_ROWS,
    ) -> Iterator[pa.Table]:
        """Yield the rows of columns in chunks.

        Cells are unconverted text: an empty cell is "", and `NA` and `01` stay unchanged.

        Args:
            columns: Names or positions, in any order; None: all.
            coded: Columns to read as dictionary<int32, string>, which saves memory if values
                repeat. Each chunk has its own dictionary.
            num_rows: Maximum number of rows per chunk.

        Yields:
            Tables of strings; none if the file has no rows.

        Raises:
            PetsError: A column is missing, or its name is not unique.
        """
        # Imported lazily: pandas takes half a second, and the command line starts without it.
        import pandas as pd

        selected = self.names if columns is None else columns
        positions = [self._position(column) for column in selected]
        is_coded = [column in coded for column in selected]
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
                    chunksize=num_rows,
                    low_memory=False,
                )
            except pd.errors.EmptyDataError:
                return
            with frames:
                for frame in frames:
                    arrays = [pa.array(frame[position], pa.string()) for position in positions]
                    arrays = [
                        array.dictionary_encode() if as_codes else array
                        for array, as_codes in zip(arrays, is_coded, strict=True)
                    ]
                    yield pa.table(arrays, [self.names[position] for position in positions])

    def read(
        self, columns: Sequence[str | int] | None = None, coded: Collection[str | int] = ()
    ) -> pa.Table:
        """Return all rows of columns. Arguments and errors are those of `chunks`."""
        if chunks := list(self.chunks(columns, coded)):
            return pa.concat_tables(chunks)
        selected = self.names if columns is None else columns
        names = (self.names[self._position(column)] for column in selected)
        return pa.table({name: pa.array([], pa.string()) for name in names})

    def _position(self, column: str | int) -> int:
        if isinstance(column, int):
            if column < len(self.names):
                return column
            raise PetsError(f"{self.url} has {len(self.names)} column(s), no column {column + 1}")
        if self.names.count(column) == 1:
            return self.names.index(column)
        if column in self.names:
            raise PetsError(
                f"{self.url} has {self.names.count(column)} columns {column!r} "
                f"({self.format}). Rename all but one"
            )
        raise PetsError(
            f"{self.url} has no column {column!r}, only {', '.join(self.names)} "
            f"({self.format}).{did_you_mean(column, self.names)}"
        )


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
    opener = _Opener(path, url or str(path), options or TextOptions())
    return opener.open(columns, has_header)


class _RowError(Exception):
    """A line is not a valid row. Converted to a `PetsError` with the file and the settings."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(f"line {line} {text}")


@dataclass(frozen=True)
class _Opener:
    path: Path
    url: str
    options: TextOptions

    def open(
        self, columns: Collection[str], has_header: bool | Callable[[list[str]], bool]
    ) -> TextTable:
        self._check_file_type()
        encoding, bom_length = detect_encoding(self.path, self.options)
        found = TextFormat(",", encoding, bom_length)
        try:
            found = detect_delimiter(self.path, found, self.options, columns)
            with suppress(csv.Error):
                found = replace(found, skips_blanks=has_blanks_before_quotes(self.path, found))
            return self._check(found, has_header)
        except _RowError as error:
            unquoted = replace(found, is_quoted=False)
            if self.options.quoting is None and found.is_quoted and found.delimiter in "\t|":
                with suppress(_RowError):
                    return self._check(unquoted, has_header)
            self._raise_error(str(error), found)
        except UnicodeError as error:
            line = find_undecodable_line(self.path, found)
            self._raise_error(f"line {line} is not valid {encoding} ({error})", found)

    def _check(
        self, found: TextFormat, has_header: bool | Callable[[list[str]], bool]
    ) -> TextTable:
        """Validate all rows.

        Raises:
            _RowError: A line is not a valid row.
        """
        num_lines, first_row = _first_row(self.path, found)
        if not first_row:
            raise PetsError(f"{self.url} is empty. Use another file")
        is_header = has_header(first_row) if callable(has_header) else has_header
        num_columns = count_columns(first_row, is_header)
        _RowCheck(found, first_row, num_columns).check(self.path)
        names = [f"column {n}" for n in range(1, num_columns + 1)]
        if is_header:
            names = [name.strip() for name in first_row[:num_columns]]
        return TextTable(
            self.path, self.url, found, names, first_row, num_lines if is_header else 0
        )

    def _check_file_type(self) -> None:
        with self.path.open("rb") as file:
            head = file.read(8)
        for start, kind in _OTHER_FILES.items():
            if head.startswith(start):
                remedy = "Decompress it, or use a URL such as zip://table.csv::https://.../a.zip"
                if kind != "compressed":
                    remedy = "Rename it so that its name ends in .parquet"
                raise PetsError(f"{self.url} is {kind}. {remedy}")

    def _raise_error(self, problem: str, found: TextFormat) -> NoReturn:
        prefix = self.options.prefix
        raise PetsError(
            f"{self.url}: {problem} (read with {found}). Correct the file, or set "
            f"{prefix}delimiter, {prefix}encoding or {prefix}quoting"
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
