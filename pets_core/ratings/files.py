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
"""Names that "auto" looks for."""
WHOLE_NUMBER = r"^(0|-?[1-9][0-9]{0,17})$"
"""A whole number in text, in the one way it is usually written."""
_MAX_COLUMNS_WITHOUT_HEADER = 30


class TableFile:
    """A text table (see `pets_core.data.sources.text_table`) or a Parquet file.

    The first row of a text table is a header, unless its first or third cell is a number and none
    is an expected name.

    Args:
        url: Path or fsspec URL; a name that ends in .parquet is taken for Parquet.
        cache_dir: Local folder for downloads.
        positions: Names of the columns of a file without a header.
        expected: Names that a header may hold.
        options: Settings of the text's format.
    """

    def __init__(
        self,
        url: str,
        cache_dir: str,
        positions: Sequence[str],
        expected: Sequence[str] = (),
        options: TextOptions | None = None,
    ) -> None:
        # The query of a signed URL is a secret.
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
                raise PetsError(f"{self.url} is no Parquet file: {error}") from error
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
        """Of a text table; empty for Parquet."""
        return "" if self._is_parquet else self._text.format.delimiter

    def read(self, columns: Mapping[str, pa.DataType | None]) -> pa.Table:
        """Read columns by their names.

        Args:
            columns: In text, the type to read each as: string, dictionary<int32, string>, or None:
                int64 where all values are whole numbers, else string. Parquet has types.

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
        # Repeated names are refused by `choose_columns`.
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
                f"{self.url} has {num_columns} columns and no header ({table.format}): write a row "
                "for each rating, with user, item and rating; a matrix of users and items is not "
                "read"
            )
        return table

    def _is_header(self, first_row: Sequence[str]) -> bool:
        cells = [cell.strip() for cell in first_row]
        has_number = _is_number(cells[0]) or (len(cells) > 2 and _is_number(cells[2]))
        return not has_number or not self._expected.isdisjoint(cells)


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


def _whole_numbers(text: pa.Array) -> pa.Array:
    """Text as int64 where every value is a whole number; else as it is."""
    trimmed = pc.utf8_trim_whitespace(text)
    is_whole = pc.all(pc.match_substring_regex(trimmed, WHOLE_NUMBER)).as_py()
    return trimmed.cast(pa.int64()) if is_whole else text


def _one_type(arrays: list[pa.Array]) -> pa.ChunkedArray:
    """The arrays as one column; as text where some are text and others numbers."""
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
    """Refuse a path of this machine where nothing lies; nothing else is looked at.

    Raises:
        PetsError: Nothing lies there.
    """
    for name in ("url", "items_url"):
        url = getattr(source, name)
        if url and not storage.is_url(url) and not storage.exists(storage.absolute(url)):
            raise PetsError(f"ratings.{name} = {url}: no such file")
