"""Format of a text table: encoding, delimiter and quoting, configured or detected."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal

from pets_core.errors import PetsError

__all__ = [
    "DELIMITERS",
    "TextFormat",
    "TextOptions",
    "count_columns",
    "detect_delimiter",
    "detect_encoding",
    "find_undecodable_line",
    "has_blanks_before_quotes",
    "is_blank",
    "is_complete",
    "large_cells",
]

DELIMITERS = ("::", "\t", ";", "|", ",")
"""Delimiters to detect, in order of preference."""
_UNQUOTED = ("::", "\t", "|")
"""Delimiters for which double quotes may be part of the text."""
_UNIT = "\x1f"
"""ASCII unit separator. Replaces "::" because pandas' C parser needs a single character."""
_ALIASES = {"tab": "\t", "\\t": "\t"}
_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    # Before UTF-16: the UTF-32-LE mark begins with the UTF-16-LE mark.
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_SURROGATES = re.compile("[\udc80-\udcff]")
_BLOCK = 1 << 20
_HEAD = 1 << 16
_MAX_LINE = 1 << 24
_MAX_CELL = 1 << 24
_HEAD_ROWS = 100


@dataclass(frozen=True)
class TextOptions:
    """Configured format of a text table; None: detected.

    Attributes:
        delimiter: An ASCII character, "::" or "tab".
        encoding: Name of a Python codec, such as "utf-8" or "cp1252".
        quoting: Whether double quotes enclose cells; False: quotes are part of the text.
        prefix: Prefix of the setting names in messages: "ratings." for "ratings.delimiter".
    """

    delimiter: str | None = None
    encoding: str | None = None
    quoting: bool | None = None
    prefix: str = ""


@dataclass(frozen=True)
class TextFormat:
    """The format of a text table.

    Attributes:
        delimiter: An ASCII character, or "::".
        encoding: Name of a Python codec.
        bom_length: Length of the byte order mark, 0 to 4 bytes.
        is_quoted: Whether double quotes may enclose cells.
        skips_blanks: Whether to ignore spaces between a delimiter and a quote.
    """

    delimiter: str
    encoding: str
    bom_length: int = 0
    is_quoted: bool = True
    skips_blanks: bool = False

    def __str__(self) -> str:
        delimiter = "tab" if self.delimiter == "\t" else repr(self.delimiter)
        return f"delimiter {delimiter}, encoding {self.encoding}"

    @property
    def character(self) -> str:
        """Delimiter in the text that `open` yields: a single character."""
        return _UNIT if self.delimiter == "::" else self.delimiter

    @property
    def quoting(self) -> Literal[0, 3]:
        """csv.QUOTE_MINIMAL or csv.QUOTE_NONE."""
        return csv.QUOTE_MINIMAL if self.is_quoted else csv.QUOTE_NONE

    @contextmanager
    def open(self, path: Path) -> Iterator[io.TextIOWrapper | _UnitSeparated]:
        """Open the text after the byte order mark. Line ends are not translated."""
        with path.open("rb") as binary:
            binary.seek(self.bom_length)
            with io.TextIOWrapper(binary, self.encoding, newline="") as text:
                yield _UnitSeparated(text) if self.delimiter == "::" else text

    def rows(self, lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
        """Split lines of an opened text into cells.

        Yields:
            Number of the last line of each row (from 1), and its cells.

        Raises:
            csv.Error: A quoted cell has no closing quote, or text follows its closing quote.
        """
        reader = csv.reader(
            lines,
            delimiter=self.character,
            quoting=self.quoting,
            skipinitialspace=self.skips_blanks,
            strict=True,
        )
        for row in reader:
            yield reader.line_num, row


class _UnitSeparated:
    """Text stream that replaces every "::" by a unit separator. Keeps single colons."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text

    def __iter__(self) -> Iterator[str]:
        return (line.replace("::", _UNIT) for line in self._text)

    def readline(self, size: int = -1) -> str:
        return self._text.readline(size).replace("::", _UNIT)

    def read(self, size: int = -1) -> str:
        text = self._text.read(size)
        # Do not end a block between two colons.
        while text.endswith(":") and (more := self._text.read(1)):
            text += more
        return text.replace("::", _UNIT)


@contextmanager
def large_cells() -> Iterator[None]:
    """Raise the cell size limit of the csv module from 128 KiB to 16 MiB."""
    limit = csv.field_size_limit(_MAX_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def is_blank(row: Sequence[str]) -> bool:
    """Whether a row is a blank line, which pandas skips."""
    return not row or (len(row) == 1 and not row[0].strip())


def count_columns(first_row: Sequence[str], has_header: bool) -> int:
    """Return the number of columns. A trailing delimiter in the header adds none."""
    ends_blank = has_header and len(first_row) > 1 and not first_row[-1].strip()
    return len(first_row) - ends_blank


def is_complete(row: Sequence[str], first_row: Sequence[str], num_columns: int) -> bool:
    """Whether a row has one cell per column. One trailing delimiter is allowed."""
    has_more = len(row) == num_columns + 1
    return len(row) == num_columns or (
        has_more and (not row[-1].strip() or len(first_row) > num_columns)
    )


def detect_encoding(path: Path, options: TextOptions) -> tuple[str, int]:
    """Return the configured encoding, or detect it by byte order mark, NUL bytes and validity.

    A file is UTF-8 if most of its non-ASCII characters are valid UTF-8, otherwise cp1252.

    Returns:
        Name of a Python codec, and length of the byte order mark in bytes.

    Raises:
        PetsError: `options.encoding` is not a text encoding.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
    bom, found = next(((bom, name) for bom, name in _BOMS if head.startswith(bom)), (b"", ""))
    if options.encoding is not None:
        try:
            configured = codecs.lookup(options.encoding).name
            "".encode(configured)
        except LookupError:
            raise PetsError(
                f"{options.prefix}encoding = {options.encoding}: unknown encoding. Set the name of "
                "a Python codec, such as utf-8, utf-16 or cp1252"
            ) from None
        has_utf_bom = bom and configured.startswith("utf")
        return (found, len(bom)) if has_utf_bom else (configured, 0)
    if bom:
        return found, len(bom)
    return _detect_utf16(head) or ("utf-8" if _is_mostly_utf8(path) else "cp1252"), 0


def _detect_utf16(head: bytes) -> str | None:
    """Return the UTF-16 codec if at least a tenth of the characters are below U+0100."""
    even, odd = head[::2].count(0), head[1::2].count(0)
    least = len(head) / 20
    if odd > least and odd > 10 * even:
        return "utf-16-le"
    return "utf-16-be" if even > least and even > 10 * odd else None


def _is_mostly_utf8(path: Path) -> bool:
    num_valid = 0
    num_invalid = 0
    # Invalid bytes become lone surrogates, which valid UTF-8 cannot encode.
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        while text := file.read(_BLOCK):
            if not text.isascii():
                invalid = len(_SURROGATES.findall(text))
                num_invalid += invalid
                num_valid += len(text) - len(text.encode("ascii", "ignore")) - invalid
    return num_valid > num_invalid or num_invalid == 0


def has_blanks_before_quotes(path: Path, found: TextFormat) -> bool:
    """Whether the first cells of any column all have spaces before their quotes: `1, "cat"`."""
    if not found.is_quoted:
        return False
    with found.open(path) as text, large_cells():
        rows = [row for _, row in islice(found.rows(text), 1, _HEAD_ROWS)]
    return any(
        all(cell[:1] == " " and re.fullmatch(r' +"[^"]*"', cell) for cell in column)
        for column in zip(*rows, strict=False)
    )


def find_undecodable_line(path: Path, text_format: TextFormat) -> int:
    """Return the number of the first line that cannot be decoded, from 1."""
    decoder = codecs.getincrementaldecoder(text_format.encoding)()
    line = 1
    with path.open("rb") as file:
        file.seek(text_format.bom_length)
        while block := file.read(_BLOCK):
            try:
                line += decoder.decode(block).count("\n")
            except UnicodeDecodeError as error:
                valid = error.object[: error.start]
                return line + valid.decode(text_format.encoding, "ignore").count("\n")
    return line


def detect_delimiter(
    path: Path, text_format: TextFormat, options: TextOptions, columns: Collection[str]
) -> TextFormat:
    """Detect delimiter and quoting from the first lines.

    Chooses the delimiter that gives the most expected columns in the header. Ties go to one that
    splits the first lines into equally many cells, at least two, then to the first candidate.

    Args:
        path: Path of the file.
        text_format: Format with the encoding of the file.
        options: Settings of the user; what they set is not detected.
        columns: Expected column names.

    Returns:
        `text_format` with delimiter and quoting.

    Raises:
        PetsError: `options.delimiter` is neither an ASCII character nor "::" nor "tab".
    """
    with text_format.open(path) as text:
        head = text.read(_HEAD) + text.readline(_MAX_LINE)
    with large_cells():
        scores = [
            (_score(*_first_rows(head, candidate), candidate, columns), candidate)
            for candidate in _candidates(text_format, options)
        ]
    return max(scores, key=lambda scored: scored[0])[1]


def _candidates(text_format: TextFormat, options: TextOptions) -> Iterator[TextFormat]:
    delimiters: Sequence[str] = DELIMITERS
    if options.delimiter is not None:
        delimiter = _ALIASES.get(options.delimiter, options.delimiter)
        if delimiter != "::" and not (len(delimiter) == 1 and delimiter.isascii()):
            raise PetsError(
                f"{options.prefix}delimiter = {options.delimiter}: unsupported delimiter. Set one "
                "ASCII character, :: or tab"
            )
        delimiters = (delimiter,)
    for delimiter in delimiters:
        quotings = [True, False] if delimiter in _UNQUOTED else [True]
        if options.quoting is not None:
            quotings = [options.quoting]
        elif delimiter == "::":
            quotings = [False]
        for is_quoted in quotings:
            yield replace(text_format, delimiter=delimiter, is_quoted=is_quoted)


def _first_rows(head: str, candidate: TextFormat) -> tuple[list[list[str]], bool]:
    """Return the complete rows of the head, at least one, and whether its quoting is valid."""
    text = head.replace("::", _UNIT) if candidate.delimiter == "::" else head
    rows: list[list[str]] = []
    fits = True
    try:
        for _, row in candidate.rows(io.StringIO(text, newline="")):
            if not is_blank(row):
                rows.append(row)
            if len(rows) == _HEAD_ROWS:
                break
    except csv.Error as error:
        # The last cell of the head may be truncated.
        fits = len(head) >= _HEAD and "unexpected end of data" in str(error)
    if not rows:
        first_line = text.strip().split("\n", 1)[0]
        rows.append(first_line.split(candidate.character))
    return rows, fits


def _score(
    rows: list[list[str]], fits: bool, candidate: TextFormat, columns: Collection[str]
) -> tuple[float, ...]:
    """Score how well a candidate splits the first rows; tuples compare left to right."""
    num_found = len({name.strip() for name in rows[0]} & set(columns))
    num_columns = count_columns(rows[0], has_header=True)
    is_regular = fits and all(is_complete(row, rows[0], num_columns) for row in rows)
    has_several = num_columns > 1
    preference = 0
    if candidate.delimiter in DELIMITERS:
        # Prefer the first delimiter; for a single column the last one, the comma.
        rank = DELIMITERS.index(candidate.delimiter)
        preference = -rank if has_several else rank
    return num_found, has_several, is_regular, candidate.is_quoted, preference
