"""The forms in which tables of ratings and titles come: CSV, TSV, MovieLens' own, Parquet."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from functools import cached_property

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from pets_core import storage
from pets_core.download import local_file
from pets_core.errors import PetsError, did_you_mean
from pets_core.ratings.config import RatingsSourceConfig

__all__ = ["TableFile", "check_tables", "choose_columns"]

_HEAD_BYTES = 1 << 16
_ARCHIVE_MARKS = (b"PK\x03\x04", b"\x1f\x8b\x08", b"BZh", b"\xfd7zXZ")


class TableFile:
    """A file with columns, whatever its form.

    Of a text file the first line tells the form: marks between the columns are tabs, or "|" in
    MovieLens' u.item (Latin-1, its quotes are part of the text), or commas; and a line with a
    number for a rating, or of u.item, is no header.

    Args:
        url: Path or fsspec URL; a name that ends in .parquet is taken for Parquet.
        cache_dir: Local folder for downloads.
        positions: Names of the columns of a file without a header.
    """

    def __init__(self, url: str, cache_dir: str, positions: Sequence[str]) -> None:
        # A signed URL is good for fetching, and for nobody to read.
        self.url = storage.without_query(url)
        self._path = local_file(url, cache_dir)
        self._is_parquet = self.url.lower().endswith(".parquet")
        self._positions = positions

    @cached_property
    def names(self) -> list[str]:
        """Names of the columns, from left to right."""
        if self._is_parquet:
            try:
                return list(pq.read_schema(self._path).names)
            except (pa.ArrowInvalid, OSError) as error:
                raise PetsError(f"{self.url} is no Parquet file: {error}") from error
        if not self._has_header:
            others = range(len(self._positions) + 1, len(self._first) + 1)
            return [*self._positions, *(f"column {n}" for n in others)][: len(self._first)]
        return self._first

    def read(self, columns: Mapping[str, pa.DataType | None]) -> pa.Table:
        """Read columns by their names.

        Args:
            columns: In text, the type to read each as; None: as its values look. Parquet has types.

        Raises:
            PetsError: The file is damaged, or has no rows.
        """
        try:
            table = self._read_parquet(columns) if self._is_parquet else self._read_text(columns)
        except (pa.ArrowInvalid, OSError) as error:
            raise PetsError(f"{self.url} is damaged: {error}") from error
        if not table.num_rows:
            raise PetsError(f"{self.url} has no rows: set another URL")
        return table

    def _read_parquet(self, columns: Mapping[str, pa.DataType | None]) -> pa.Table:
        table = pq.ParquetFile(self._path).read(columns=list(columns))
        return pa.table({name: _decoded(table[name]) for name in columns})

    def _read_text(self, columns: Mapping[str, pa.DataType | None]) -> pa.Table:
        piped = self._delimiter == "|"
        return pa.csv.read_csv(
            self._path,
            pa.csv.ReadOptions(
                column_names=self.names,
                skip_rows=int(self._has_header),
                encoding="latin-1" if piped else "utf8",
            ),
            pa.csv.ParseOptions(delimiter=self._delimiter, quote_char=False if piped else '"'),
            pa.csv.ConvertOptions(
                include_columns=list(columns),
                column_types={name: kind for name, kind in columns.items() if kind is not None},
            ),
        )

    @cached_property
    def _head(self) -> str:
        """The first line."""
        with self._path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
        if head.startswith(_ARCHIVE_MARKS):
            raise PetsError(
                f"{self.url} is compressed: unpack it, or name the file in it, as "
                "zip://ml-100k/u.data::https://.../ml-100k.zip does"
            )
        lines = head.decode("utf-8-sig", errors="replace").splitlines()
        if not lines or not lines[0].strip():
            raise PetsError(f"{self.url} is empty or begins with an empty line")
        return lines[0]

    @property
    def _delimiter(self) -> str:
        return next((mark for mark in "\t|" if mark in self._head), ",")

    @cached_property
    def _first(self) -> list[str]:
        """The columns of the first line."""
        return [name.strip() for name in next(csv.reader([self._head], delimiter=self._delimiter))]

    @property
    def _has_header(self) -> bool:
        return self._delimiter != "|" and not (len(self._first) > 2 and _is_number(self._first[2]))


def choose_columns(
    file: TableFile, wanted: Mapping[str, str], known: Mapping[str, Sequence[str]]
) -> dict[str, str]:
    """The column of each kind.

    Args:
        file: Whose columns.
        wanted: By kind ("user"), what the setting user_column says: a name, or auto.
        known: By kind, the names that auto looks for.

    Raises:
        PetsError: Columns are absent or there twice, or one is wanted for two kinds; all faults at
            once.
    """
    found, faults = {}, []
    for kind, name in wanted.items():
        candidates = known[kind] if name == "auto" else (name,)
        present = [column for column in file.names if column in candidates]
        if len(present) == 1:
            found[kind] = present[0]
        elif present:
            faults.append(
                f"ratings.{kind}_column = {name}: {file.url} has {len(present)} such columns "
                f"({', '.join(present)}): name one, or rename all but one"
            )
        else:
            faults.append(
                f"ratings.{kind}_column = {name}: {file.url} has no column "
                f"{' or '.join(candidates)}, only {', '.join(file.names)}."
                f"{did_you_mean(candidates[0], file.names)}"
            )
    if len(set(found.values())) < len(found):
        named = ", ".join(f"{kind}_column = {name}" for kind, name in found.items())
        faults.append(f"{file.url}: a column cannot be two things: {named}")
    if faults:
        raise PetsError("\n".join(faults))
    return found


def _decoded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Without a dictionary, which may have entries that no row has."""
    is_dictionary = pa.types.is_dictionary(column.type)
    return column.cast(column.type.value_type) if is_dictionary else column


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def check_tables(source: RatingsSourceConfig) -> None:
    """Refuse a path of this machine where nothing lies; nothing else is looked at.

    Raises:
        PetsError: Nothing lies there.
    """
    for name in ("url", "items_url"):
        url = getattr(source, name)
        if url and not storage.is_url(url) and not storage.exists(storage.absolute(url)):
            raise PetsError(f"ratings.{name} = {url}: no such file")
