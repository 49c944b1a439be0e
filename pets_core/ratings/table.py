"""Reading and validation of tables of ratings and titles."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pets_core import storage
from pets_core.data.sources.text_numbers import parse_numbers
from pets_core.data.sources.text_table import TextOptions
from pets_core.errors import PetsError
from pets_core.ratings.config import RatingsSourceConfig
from pets_core.ratings.files import KNOWN_COLUMNS, WHOLE_NUMBER, TableFile, choose_columns

__all__ = ["RatingsTable", "read_ratings", "read_titles"]

_CODES = pa.dictionary(pa.int32(), pa.string())
"""Dictionary encoding: each distinct user, item and rating of millions of rows is parsed once."""
_WHOLE_FLOAT = r"^-?[0-9]+\.0+$"
_DATE = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}([ T][0-9]{2}.*)?$"
_WITH_ZONE = r"(Z|[+-][0-9]{2}:?[0-9]{2})$"
_AMAZON_USER = r"^(A[0-9A-Z]{11,}|#oc-.*)$"
_AMAZON_ASIN = r"^B0[0-9A-Z]{8}$"
_AMAZON_ITEM = r"^(B0[0-9A-Z]{8}|[0-9]{9}[0-9X])$"
"""An ASIN, or the ISBN of a book."""
_AMAZON_SHARE = 0.9


class RatingsTable(NamedTuple):
    """All ratings of a source, sorted by user and item.

    Attributes:
        users: Positions in `user_ids`, int32 (N,).
        items: Positions in `item_ids`, int32 (N,).
        ratings: float32 (N,).
        times: int64 (N,); None if the source has no times.
        user_ids: Text; sorted as numbers if all are whole numbers.
        item_ids: Text; sorted as numbers if all are whole numbers.
        y_range: Lowest and highest rating of the scale.
    """

    users: npt.NDArray[np.int32]
    items: npt.NDArray[np.int32]
    ratings: npt.NDArray[np.float32]
    times: npt.NDArray[np.int64] | None
    user_ids: pa.StringArray
    item_ids: pa.StringArray
    y_range: tuple[float, float]


def read_ratings(source: RatingsSourceConfig, cache_dir: str) -> RatingsTable:
    """Read and validate the table at `ratings.url`.

    Raises:
        PetsError: A column or an id is missing, a rating is not a number or not on the scale, all
            ratings are equal, or a pair has several ratings and `ratings.duplicates` is refuse.
    """
    assert source.url is not None
    positions = ("item", "user") if source.column_order == "item-user" else ("user", "item")
    file = TableFile(
        source.url,
        cache_dir,
        positions=(*positions, "rating", "time"),
        expected=_header_names(source, KNOWN_COLUMNS),
        options=TextOptions(source.delimiter, source.encoding, source.quoting, "ratings."),
    )
    columns = choose_columns(file, _column_settings(source, file), KNOWN_COLUMNS)
    types = {name: None if kind == "time" else _CODES for kind, name in columns.items()}
    read = file.read(types)
    if source.column_order == "auto" and not file.has_header:
        columns = _order_amazon_columns(read, columns, file.url)
    read = _drop_unrated(read, columns["rating"], source, file)
    users, user_ids = _encode_ids(read[columns["user"]], columns["user"], file.url)
    items, item_ids = _encode_ids(read[columns["item"]], columns["item"], file.url)
    ratings, y_range = _parse_ratings(read[columns["rating"]], columns["rating"], source, file)
    time = columns.get("time")
    times = None if time is None else _parse_times(read[time], time, file.url)
    table = RatingsTable(users, items, ratings, times, user_ids, item_ids, y_range)
    return _deduplicate(table, source.duplicates, file.url)


def read_titles(
    source: RatingsSourceConfig, cache_dir: str, item_ids: pa.StringArray
) -> pa.StringArray:
    """Return the titles of items from the table at `ratings.items_url`; ids for missing titles.

    Raises:
        PetsError: A column is missing, an item is duplicate, or the table has none of the items.
    """
    if source.items_url is None:
        return item_ids
    known = {"item": (*KNOWN_COLUMNS["item"], "id"), "title": ("title", "name")}
    options = TextOptions(
        source.items_delimiter, source.items_encoding, source.items_quoting, "ratings.items_"
    )
    file = TableFile(
        source.items_url,
        cache_dir,
        positions=("item", "title"),
        expected=_header_names(source, known),
        options=options,
    )
    settings = {"item": source.item_column, "title": "auto"}
    columns = choose_columns(file, settings, known)
    read = file.read(dict.fromkeys(columns.values(), pa.string()))
    ids, titles = (_to_text(read[columns[kind]]).combine_chunks() for kind in ("item", "title"))
    ids = _strip_point_zero(ids)
    if repeated := [row["values"] for row in ids.value_counts().to_pylist() if row["counts"] > 1]:
        raise PetsError(
            f"{file.url}: {len(repeated)} item(s) have several rows, such as {repeated[0]}: remove "
            "all but one"
        )
    positions_of_items = pc.index_in(item_ids, ids)
    if positions_of_items.null_count == len(positions_of_items):
        raise PetsError(
            f"{file.url} has none of the items in "
            f"{storage.strip_query(str(source.url))}, such as {item_ids[0]}: set "
            "ratings.items_url to the table of the same data set, or remove it"
        )
    found = titles.take(positions_of_items)
    untitled = pc.fill_null(pc.equal(found, ""), True)
    return pc.if_else(untitled, item_ids, found)


def _header_names(source: RatingsSourceConfig, known: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the column names that mark a row as header."""
    named = [getattr(source, f"{kind}_column", None) for kind in known]
    return [name for names in known.values() for name in names] + [
        name for name in named if name not in (None, "auto")
    ]


def _order_amazon_columns(read: pa.Table, columns: dict[str, str], url: str) -> dict[str, str]:
    """Return the columns, with user and item swapped if the ids are Amazon's, item first.

    Raises:
        PetsError: Only one of the first two columns has ids of that form.
    """

    def values(kind: str) -> pa.Array:
        return _to_text(_encode(read[columns[kind]], columns[kind], url)[1])

    def share(ids: pa.Array, pattern: str) -> float:
        return pc.mean(pc.match_substring_regex(ids, pattern)).as_py() or 0.0

    first, second = values("user"), values("item")
    # ISBNs of books look like user numbers of other sources: require at least one B0... ASIN.
    has_asin = share(first, _AMAZON_ASIN) > 0
    first_is_item = has_asin and share(first, _AMAZON_ITEM) >= _AMAZON_SHARE
    second_is_user = share(second, _AMAZON_USER) >= _AMAZON_SHARE
    if first_is_item and second_is_user:
        return columns | {"user": columns["item"], "item": columns["user"]}
    if first_is_item or second_is_user:
        found = (
            "first column has ids as Amazon's items"
            if first_is_item
            else ("second column has ids as Amazon's users")
        )
        raise PetsError(
            f"{url} has no header; its {found}, but the other has no ids of that kind: set "
            "ratings.column_order to user-item or item-user"
        )
    return columns


def _drop_unrated(
    read: pa.Table, name: str, source: RatingsSourceConfig, file: TableFile
) -> pa.Table:
    """Drop rows whose rating is `ratings.not_rated`.

    Raises:
        PetsError: No row remains.
    """
    if source.not_rated is None:
        return read
    codes, values = _encode(read[name], name, file.url)
    is_unrated = _to_numbers(values, name, source, file) == source.not_rated
    rows = np.append(~is_unrated, True)[codes]
    if not rows.any():
        raise PetsError(
            f"{file.url}: every {name} is ratings.not_rated = {source.not_rated:g}: set the value "
            "that means not rated, or remove the setting"
        )
    kept = read.filter(pa.array(rows))
    return pa.table({name: _drop_unused_codes(kept[name]) for name in kept.column_names})


def _drop_unused_codes(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Drop unused values from the dictionary of a column, if it has one."""
    if not pa.types.is_dictionary(column.type):
        return column
    return column.cast(column.type.value_type).dictionary_encode()


def _column_settings(source: RatingsSourceConfig, file: TableFile) -> dict[str, str]:
    """Return the column setting of each kind; "auto" times are optional.

    Raises:
        PetsError: There are no times, and `ratings.split` is time.
    """
    settings = {kind: getattr(source, f"{kind}_column") for kind in KNOWN_COLUMNS}
    if settings["time"] == "auto" and not set(KNOWN_COLUMNS["time"]) & set(file.names):
        if source.split == "time":
            raise PetsError(
                f"ratings.split = time: {file.url} has no column "
                f"{' or '.join(KNOWN_COLUMNS['time'])}, only {', '.join(file.names)}: set "
                "ratings.time_column, or set ratings.split = random"
            )
        settings["time"] = None
    return {kind: name for kind, name in settings.items() if name is not None}


def _encode(column: pa.ChunkedArray, name: str, url: str) -> tuple[npt.NDArray[np.int32], pa.Array]:
    """Return codes, int32 (N,), -1 for null, and the value of each code."""
    if not pa.types.is_dictionary(column.type):
        try:
            column = column.dictionary_encode()
        except pa.ArrowNotImplementedError as error:
            raise PetsError(f"{url}: column {name} is {column.type}: expected numbers") from error
    whole = column.unify_dictionaries().combine_chunks()
    return pc.fill_null(whole.indices, -1).to_numpy(), whole.dictionary


def _to_text(column: pa.ChunkedArray | pa.Array) -> Any:
    """Return values as trimmed text."""
    return pc.utf8_trim_whitespace(column.cast(pa.string()))


_MISSING_IDS = pa.array(["nan", "NaN", "<NA>", "#N/A"])
"""Text that programs write for a missing id."""


def _encode_ids(
    column: pa.ChunkedArray, name: str, url: str
) -> tuple[npt.NDArray[np.int32], pa.StringArray]:
    """Return each row's position among the sorted ids, int32 (N,), and the sorted ids."""
    codes, values = _encode(column, name, url)
    values = _to_text(_to_whole_or_text(values, name, url))
    values = pc.if_else(pc.is_in(values, _MISSING_IDS), "", values)
    values = _strip_point_zero(values)
    missing = np.append(pc.equal(values, "").to_numpy(zero_copy_only=False), True)[codes]
    if missing.any():
        _raise_for_rows(url, missing, f"has no {name}", "remove such rows, or add ids")
    ids = values.unique()
    whole = pc.all(pc.match_substring_regex(ids, WHOLE_NUMBER)).as_py()
    ids = ids.take(pc.sort_indices(ids.cast(pa.int64()) if whole else ids))
    return pc.index_in(values, ids).to_numpy()[codes], ids


def _to_whole_or_text(values: pa.Array, name: str, url: str) -> pa.Array:
    """Return ids as whole numbers or text; floats are whole numbers that pandas converted."""
    kind = values.type
    if pa.types.is_floating(kind):
        with contextlib.suppress(pa.ArrowInvalid):
            return values.cast(pa.int64())
    elif pa.types.is_integer(kind) or _is_text(kind):
        return values
    raise PetsError(f"{url}: column {name} is {kind}: expected whole numbers or text")


def _strip_point_zero(ids: pa.StringArray) -> pa.StringArray:
    """Remove the ".0" that pandas writes from ids or times, if all are whole numbers."""
    is_float = pc.match_substring_regex(ids, _WHOLE_FLOAT)
    is_number = pc.or_(is_float, pc.match_substring_regex(ids, WHOLE_NUMBER))
    if not pc.all(is_number).as_py():
        return ids
    return pc.replace_substring_regex(ids, r"\.0+$", "")


def _parse_ratings(
    column: pa.ChunkedArray, name: str, source: RatingsSourceConfig, file: TableFile
) -> tuple[npt.NDArray[np.float32], tuple[float, float]]:
    """Return ratings, float32 (N,), and the lowest and highest of the scale."""
    url = file.url
    codes, values = _encode(column, name, url)
    numbers = np.append(_to_numbers(values, name, source, file), np.nan)
    with np.errstate(over="ignore"):
        rounded = numbers.astype(np.float32)

    def check(bad: npt.NDArray[np.bool_], problem: str, remedy: str) -> None:
        rows = bad[codes]
        if rows.any():
            code = codes[rows.argmax()]
            value = "" if code < 0 else values[code].as_py()
            found = f"has no {name}" if value in ("", None) else f"has {name} = {value}, {problem}"
            _raise_for_rows(url, rows, found, remedy)

    check(~np.isfinite(rounded), "expected a finite number", "correct or remove such rows")
    low, high = source.y_range or (float(numbers[:-1].min()), float(numbers[:-1].max()))
    outside = (numbers < low) | (numbers > high)
    remedy = "correct them, or widen ratings.y_range"
    check(outside, f"outside ratings.y_range = ({low:g}, {high:g})", remedy)
    if np.ptp(rounded[:-1]) == 0:
        raise PetsError(
            f"{url}: all values of {name} are equal ({rounded[0]:g}): set ratings.rating_column to "
            "a column with different ratings"
        )
    return rounded[codes], (low, high)


def _to_numbers(
    values: pa.Array, name: str, source: RatingsSourceConfig, file: TableFile
) -> npt.NDArray[np.float64]:
    """Return values as numbers, float64; NaN for invalid values."""
    kind = values.type
    if _is_text(kind):
        return parse_numbers(
            values,
            source.decimal,
            delimiter=file.delimiter,
            setting="ratings.decimal",
            where=f"{file.url}: column {name}",
        )
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind)):
        raise PetsError(f"{file.url}: column {name} is {kind}: expected numbers")
    return np.asarray(values.cast(pa.float64()).to_numpy())


def _parse_times(column: pa.ChunkedArray, name: str, url: str) -> npt.NDArray[np.int64]:
    """Return times, int64 (N,): whole numbers unchanged, dates as seconds since 1970."""
    expected = "expected whole numbers, or dates as 2024-12-31 23:59:59"
    remedy = "correct such rows, or set ratings.time_column = null to ignore times"
    if column.null_count:
        _raise_for_rows(url, column.is_null().to_numpy(), f"has no {name}", remedy)
    kind = column.type
    if _is_text(kind):
        column = text = _strip_point_zero(_to_text(column))
        is_date = pc.match_substring_regex(text, _DATE)
        matches = is_date if is_date[0].as_py() else pc.match_substring_regex(text, WHOLE_NUMBER)
        bad = ~matches.to_numpy()
        if bad.any():
            value = text[int(bad.argmax())].as_py()
            problem = f"has {name} = {value!r}, {expected}" if value else f"has no {name}"
            _raise_for_rows(url, bad, problem, remedy)
        has_zone = pc.match_substring_regex(text.slice(0, 1), _WITH_ZONE)[0].as_py()
        date = pa.timestamp("ns", "UTC" if has_zone else None)
        kind = date if is_date[0].as_py() else pa.int64()
    try:
        if pa.types.is_temporal(kind):
            zone = getattr(kind, "tz", None)
            column = column.cast(kind).cast(pa.timestamp("s", zone), safe=False)
        return np.asarray(column.cast(pa.int64()).to_numpy())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise PetsError(f"{url}: column {name} is {kind}: {expected} ({error})") from error


def _deduplicate(table: RatingsTable, duplicates: str, url: str) -> RatingsTable:
    """Sort ratings by user and item, and drop duplicate pairs."""
    pairs = table.users * np.int64(len(table.item_ids)) + table.items
    order = np.argsort(pairs, kind="stable")
    repeats = pairs[order[1:]] == pairs[order[:-1]]
    if repeats.any():
        if duplicates == "refuse":
            seconds, firsts = order[1:][repeats], order[:-1][repeats]
            second, first = seconds.min(), firsts[seconds.argmin()]
            user, item = table.user_ids[table.users[second]], table.item_ids[table.items[second]]
            raise PetsError(
                f"{url}: {len(seconds)} row(s) repeat a pair of user and item: the first is row "
                f"{second + 1} (user {user}, item {item}, as row {first + 1}): remove such rows, "
                "or set ratings.duplicates = last"
            )
        if table.times is not None:
            order = np.lexsort((table.times, pairs))
        order = order[np.append(~repeats, True)]
    times = None if table.times is None else table.times[order]
    return table._replace(
        users=table.users[order],
        items=table.items[order],
        ratings=table.ratings[order],
        times=times,
    )


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _raise_for_rows(url: str, bad: npt.NDArray[np.bool_], problem: str, remedy: str) -> NoReturn:
    """Raise a PetsError with the first invalid row and the number of others.

    Args:
        url: The table.
        bad: Whether each row is invalid, (N,).
        problem: Problem of the first invalid row, a phrase after "row N".
        remedy: How to correct it.
    """
    others = int(bad.sum()) - 1
    more = f" (and {others} more)" if others else ""
    raise PetsError(f"{url}: row {int(bad.argmax()) + 1} {problem}{more}: {remedy}")
