"""Text tables, CSV and the like: their format is detected, every row checked, chunks are read.

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
    """A checked text table; see `open_text_table`.

    Attributes:
        path: The file.
        url: Its name in messages.
        format: Its delimiter, encoding and quoting.
        names: Names of the columns, from left to right, without blanks around them; "column 1",
            "column 2", ... where there is no header.
        first_row: Cells of the first row, which is the header or else a row as any other.
        num_header_lines: Lines before the first row of values.
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
        """Read columns, some rows at a time.

        Cells are text as it stands in the file: a blank one is "", and `NA` and `01` stay so.

        Args:
            columns: Names or positions, in any order; None: all.
            coded: Those of them to read as dictionary<int32, string>, which takes less memory
                where few values recur. Each chunk has a dictionary of its own.
            num_rows: Most rows of a chunk.

        Yields:
            Tables of strings; none where the file has no rows.

        Raises:
            PetsError: A column is absent, or its name is there twice.
        """
        # The command line starts without pandas, which takes half a second to import.
        import pandas as pd

        wanted = self.names if columns is None else columns
        positions = [self._position(column) for column in wanted]
        is_coded = [column in coded for column in wanted]
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
        """Read all rows of columns at once; arguments and errors as `chunks`."""
        if chunks := list(self.chunks(columns, coded)):
            return pa.concat_tables(chunks)
        wanted = self.names if columns is None else columns
        return pa.table({self.names[self._position(c)]: pa.array([], pa.string()) for c in wanted})

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
                f"({self.format}): rename all but one"
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

    The file is read once, in blocks. Blanks around the names of the header, a trailing delimiter
    and lines without text are tolerated.

    Args:
        path: A local file.
        columns: Names that the header is expected to hold, all or some: the delimiter is the one
            that finds most of them.
        has_header: Whether the first row holds the names of the columns, or a function of its
            cells that decides.
        options: Parts of the format that are set, and how messages name these settings.
        url: Name of the file in messages; empty: its path.

    Raises:
        PetsError: The file is empty, compressed or holds NUL or undecodable bytes, or a row has
            too few or too many cells: with the line, the format and the settings.
    """
    opener = _Opener(path, url or str(path), options or TextOptions())
    return opener.open(columns, has_header)


class _Fault(Exception):  # noqa: N818 - becomes a PetsError that names the file and settings
    """A line that is not a row of the table."""

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
        self._refuse_other_files()
        encoding, bom_length = detect_encoding(self.path, self.options)
        found = TextFormat(",", encoding, bom_length)
        try:
            found = detect_delimiter(self.path, found, self.options, columns)
            with suppress(csv.Error):
                found = replace(found, skips_blanks=has_blanks_before_quotes(self.path, found))
            return self._check(found, has_header)
        except _Fault as fault:
            unquoted = replace(found, is_quoted=False)
            if self.options.quoting is None and found.is_quoted and found.delimiter in "\t|":
                with suppress(_Fault):
                    return self._check(unquoted, has_header)
            self._refuse(str(fault), found)
        except UnicodeError as error:
            line = find_undecodable_line(self.path, found)
            self._refuse(f"line {line} has bytes that are not {encoding} ({error})", found)

    def _check(
        self, found: TextFormat, has_header: bool | Callable[[list[str]], bool]
    ) -> TextTable:
        """Read all lines."""
        num_lines, first_row = _first_row(self.path, found)
        if not first_row:
            raise PetsError(f"{self.url} is empty: set another URL")
        is_header = has_header(first_row) if callable(has_header) else has_header
        num_columns = count_columns(first_row, is_header)
        _RowCheck(found, first_row, num_columns).check(self.path)
        names = [f"column {n}" for n in range(1, num_columns + 1)]
        if is_header:
            names = [name.strip() for name in first_row[:num_columns]]
        return TextTable(
            self.path, self.url, found, names, first_row, num_lines if is_header else 0
        )

    def _refuse_other_files(self) -> None:
        with self.path.open("rb") as file:
            head = file.read(8)
        for start, kind in _OTHER_FILES.items():
            if head.startswith(start):
                remedy = "unpack it, or name the file in it, as zip://table.csv::https://.../a.zip"
                if kind != "compressed":
                    remedy = "give it a name that ends in .parquet"
                raise PetsError(f"{self.url} is {kind}: {remedy}")

    def _refuse(self, fault: str, found: TextFormat) -> NoReturn:
        prefix = self.options.prefix
        raise PetsError(
            f"{self.url}: {fault} (read with {found}): correct the file, or set {prefix}delimiter, "
            f"{prefix}encoding or {prefix}quoting"
        ) from None


def _first_row(path: Path, found: TextFormat) -> tuple[int, list[str]]:
    """Number of the lines up to the first row's last, and its cells; none of an empty file."""
    with found.open(path) as text, large_cells():
        try:
            for line, row in found.rows(text):
                if not is_blank(row):
                    return line, row
        except csv.Error as error:
            raise _Fault(1, f"does not end its quotes as CSV does: {error}") from error
    return 0, []


@dataclass(frozen=True)
class _RowCheck:
    """Compare the number of cells of each row with that of the columns."""

    format: TextFormat
    first_row: list[str]
    num_columns: int

    def check(self, path: Path) -> None:
        """Raise a `_Fault` for the first line at fault.

        Lines without quotes are compared in blocks by NumPy, twenty times as fast as the csv
        module, which reads the others.
        """
        line = 1
        with self.format.open(path) as text:
            while block := text.read(_BLOCK) + text.readline():
                self._refuse_nul(block, line)
                has_quotes = self.format.is_quoted and '"' in block
                if has_quotes or "\r" in block.replace("\r\n", ""):
                    break
                line += self._check_block(block.encode(), line)
            else:
                return
        with self.format.open(path) as text, large_cells():
            self._check_rows(text)

    def _check_block(self, block: bytes, first_line: int) -> int:
        """Check whole lines that are a row each; return how many they are."""
        data = block if block.endswith(b"\n") else block + b"\n"
        characters = np.frombuffer(data, np.uint8)
        ends = np.flatnonzero(characters == ord("\n"))
        delimiters = np.flatnonzero(characters == ord(self.format.character))
        num_before = np.searchsorted(delimiters, ends)
        num_cells = np.diff(num_before, prepend=0) + 1
        for place in np.flatnonzero(num_cells != self.num_columns):
            start = ends[place - 1] + 1 if place else 0
            line = data[start : ends[place]].rstrip(b"\r").decode()
            self._check_row(line.split(self.format.character), first_line + int(place))
        return len(ends)

    def _check_rows(self, text: Iterable[str]) -> None:
        def lines() -> Iterator[str]:
            for number, line in enumerate(text, 1):
                self._refuse_nul(line, number)
                yield line

        last_line = 0
        try:
            for line, row in self.format.rows(lines()):
                if len(row) != self.num_columns:
                    self._check_row(row, last_line + 1)
                last_line = line
        except csv.Error as error:
            raise _Fault(last_line + 1, f"does not end its quotes as CSV does: {error}") from error

    def _check_row(self, row: list[str], line: int) -> None:
        if not (is_blank(row) or is_complete(row, self.first_row, self.num_columns)):
            raise _Fault(line, f"has {len(row)} column(s), expected {self.num_columns}")

    def _refuse_nul(self, text: str, first_line: int) -> None:
        if "\0" in text:
            line = first_line + text[: text.index("\0")].count("\n")
            raise _Fault(line, "has a NUL character")
