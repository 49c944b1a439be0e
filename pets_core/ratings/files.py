"""Files with ratings or titles: text tables, with or without a header, and Parquet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pets_core import storage
from pets_core.data.sources.text_table import TextOptions, TextTable, open_text_table
from pets_core.errors import PetsError, did_you_mean
from pets_core.ratings.config import RatingsSourceConfig
from pets_core.storage.download import local_file

__all__ = ["KNOWN_COLUMNS", "WHOLE_NUMBER", "TableFile", "check_tables", "choose_columns"]

KNOWN_COLUMNS = {
    "user": ("userId", "user_id", "user"),
    "item": ("movieId", "movie_id", "itemId", "item_id", "item", "asin", "parent_asin"),
    "rating": ("rating",),
    "time": ("timestamp", "time"),
}
"""Column names that "auto" matches."""
WHOLE_NUMBER = r"^(0|-?[1-9][0-9]{0,17})$"
"""A whole number in text, without leading zeros or plus sign."""
_MAX_COLUMNS_WITHOUT_HEADER = 30


class TableFile:
    """A text table (see `pets_core.data.sources.text_table`) or a Parquet file.

    The first row of a text table is a header, unless its first or third cell is a number and no
    cell is an expected name.

    Args:
        url: Path or fsspec URL; a name with suffix .parquet is read as Parquet.
        cache_dir: Local folder for downloads.
        positions: Names of the columns of a file without a header.
        expected: Column names that mark a row as header.
        options: Settings of the text format.
    """

    def __init__(
        self,
        url: str,
        cache_dir: str,
        positions: Sequence[str],
        expected: Sequence[str] = (),
        options: TextOptions | None = None,
    ) -> None:
        # The query of a signed URL may hold a signature.
        self.url = storage.strip_query(url)
        self._path = local_file(url, cache_dir)
        self._is_parquet = self.url.lower().endswith(".parquet")
        self._positions = positions
        self._expected = frozenset([*positions, *expected])
        self._options = options

    @cached_property
    def names(self) -> list[str]:
        """Names of the columns, from left to right."""
        if self._is_parquet:
            try:
                return list(pq.read_schema(self._path).names)
            except (pa.ArrowInvalid, OSError) as error:
                raise PetsError(f"{self.url} is not a Parquet file: {error}") from error
        if self.has_header:
            return self._text.names
        num_named = min(len(self._positions), len(self._text.names))
        return [*self._positions[:num_named], *self._text.names[num_named:]]

    @property
    def has_header(self) -> bool:
        """Whether the file names its columns."""
        return self._is_parquet or self._is_header(self._text.first_row)

    @property
    def delimiter(self) -> str:
        """Delimiter of a text table; empty for Parquet."""
        return "" if self._is_parquet else self._text.format.delimiter

    def read(self, columns: Mapping[str, pa.DataType | None]) -> pa.Table:
        """Read columns by name.

        Args:
            columns: Type to read each text column as: string, dictionary<int32, string>, or None
                for int64 if all values are whole numbers, else string. Ignored for Parquet.

        Raises:
            PetsError: The file is damaged, or has no rows.
        """
        table = self._read_parquet(columns) if self._is_parquet else self._read_text(columns)
        if not table.num_rows:
            raise PetsError(f"{self.url} has no rows: set another URL")
        return table

    def _read_parquet(self, columns: Mapping[str, pa.DataType | None]) -> pa.Table:
        try:
            table = pq.ParquetFile(self._path).read(columns=list(columns))
        except (pa.ArrowInvalid, OSError) as error:
            raise PetsError(f"{self.url} is damaged: {error}") from error
        return pa.table({name: _decoded(table[name]) for name in columns})

    def _read_text(self, columns: Mapping[str, pa.DataType | None]) -> pa.Table:
        # `choose_columns` has rejected duplicate names.
        positions = [self.names.index(name) for name in columns]
        kinds = list(columns.values())
        coded = [
            position
            for position, kind in zip(positions, kinds, strict=True)
            if kind is not None and pa.types.is_dictionary(kind)
        ]
        arrays: list[list[pa.Array]] = [[] for _ in positions]
        for chunk in self._text.chunks(positions, coded):
            for parts, column, kind in zip(arrays, chunk.columns, kinds, strict=True):
                array = column.combine_chunks()
                parts.append(_whole_numbers(array) if kind is None else array)
        return pa.table([_one_type(parts) for parts in arrays], list(columns))

    @cached_property
    def _text(self) -> TextTable:
        table = open_text_table(
            self._path,
            self._expected,
            has_header=self._is_header,
            options=self._options,
            url=self.url,
        )
        num_columns = len(table.names)
        if not self._is_header(table.first_row) and num_columns > _MAX_COLUMNS_WITHOUT_HEADER:
            raise PetsError(
                f"{self.url} has {num_columns} columns and no header ({table.format}): use a table "
                "with one rating per row (user, item, rating); a matrix of users and items is not "
                "supported"
            )
        return table

    def _is_header(self, first_row: Sequence[str]) -> bool:
        cells = [cell.strip() for cell in first_row]
        has_number = _is_number(cells[0]) or (len(cells) > 2 and _is_number(cells[2]))
        return not has_number or not self._expected.isdisjoint(cells)


def choose_columns(
    file: TableFile, settings: Mapping[str, str], known: Mapping[str, Sequence[str]]
) -> dict[str, str]:
    """Return the column name of each kind ("user").

    Args:
        file: The table.
        settings: By kind, the value of its setting (user_column): a name, or auto.
        known: By kind, the names that auto matches.

    Raises:
        PetsError: Columns are missing or ambiguous, or one is used for two kinds. The message lists
            all problems.
    """
    found, problems = {}, []
    for kind, name in settings.items():
        candidates = known[kind] if name == "auto" else (name,)
        present = [column for column in file.names if column in candidates]
        if len(present) == 1:
            found[kind] = present[0]
        elif present:
            problems.append(
                f"ratings.{kind}_column = {name}: {file.url} has {len(present)} such columns "
                f"({', '.join(present)}): set ratings.{kind}_column to one, or rename the others"
            )
        else:
            problems.append(
                f"ratings.{kind}_column = {name}: {file.url} has no column "
                f"{' or '.join(candidates)}, only {', '.join(file.names)}."
                f"{did_you_mean(candidates[0], file.names)}"
            )
    if len(set(found.values())) < len(found):
        named = ", ".join(f"{kind}_column = {name}" for kind, name in found.items())
        problems.append(f"{file.url}: a column is used twice: {named}: set different columns")
    if problems:
        raise PetsError("\n".join(problems))
    return found


def _decoded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the column without dictionary encoding, which may have unused entries."""
    is_dictionary = pa.types.is_dictionary(column.type)
    return column.cast(column.type.value_type) if is_dictionary else column


def _whole_numbers(text: pa.Array) -> pa.Array:
    """Return text as int64 if every value is a whole number, else unchanged."""
    trimmed = pc.utf8_trim_whitespace(text)
    is_whole = pc.all(pc.match_substring_regex(trimmed, WHOLE_NUMBER)).as_py()
    return trimmed.cast(pa.int64()) if is_whole else text


def _one_type(arrays: list[pa.Array]) -> pa.ChunkedArray:
    """Concatenate arrays into one column; mixed text and numbers become text."""
    if len({array.type for array in arrays}) > 1:
        arrays = [array.cast(pa.string()) for array in arrays]
    return pa.chunked_array(arrays, None if arrays else pa.string())


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def check_tables(source: RatingsSourceConfig) -> None:
    """Check that tables with a local path exist. URLs are not checked.

    Raises:
        PetsError: A file does not exist.
    """
    for name in ("url", "items_url"):
        url = getattr(source, name)
        if url and not storage.is_url(url) and not storage.exists(storage.absolute(url)):
            raise PetsError(f"ratings.{name} = {url}: no such file")
