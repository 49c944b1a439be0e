"""Numbers in text: with a decimal point or a decimal comma."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pets_core.errors import PetsError

__all__ = ["parse_numbers"]

_EXPONENT = "([eE][+-]?[0-9]+)?"
_PLAIN = rf"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+){_EXPONENT}$"
_GROUPED = {mark: rf"^[+-]?[0-9]{{1,3}}([{mark}][0-9]{{3}})+$" for mark in ",."}
"""Whole numbers whose thousands are set apart."""
_DECIMAL = {
    mark: rf"^[+-]?([0-9]+|[0-9]{{1,3}}([{other}][0-9]{{3}})+)?[{mark}][0-9]*{_EXPONENT}$"
    for mark, other in (",.", ".,")
}


def parse_numbers(
    values: pa.Array | pa.ChunkedArray,
    decimal: str | None = None,
    *,
    delimiter: str = ",",
    setting: str = "decimal",
    where: str = "",
) -> npt.NDArray[np.float64]:
    """Parse text as numbers with a decimal point or a decimal comma.

    The mark is one for all values, so give a whole column, or its distinct values. Where no value
    has a comma, it is a point. Otherwise values such as "3,5" or "1.234,5" make it a comma, and
    "1,234.5" or "4.5" a point.

    Args:
        values: Strings (N,).
        decimal: "." or ","; None: detected.
        delimiter: Of the file. In one with another delimiter than a comma, "1,234" is 1.234.
        setting: Name of the setting of `decimal` in messages.
        where: Names the values in messages, such as "ratings.csv: column rating".

    Returns:
        float64 (N,); NaN where a value is not a number.

    Raises:
        PetsError: The mark is ambiguous: all commas may separate thousands, or some values have a
            decimal comma and others a decimal point.
    """
    text = pc.utf8_trim_whitespace(values)
    mark = decimal or _detect_decimal(text, delimiter, setting, where)
    thousands = "." if mark == "," else ","
    is_grouped = pc.match_substring_regex(text, _GROUPED[thousands])
    is_decimal = pc.match_substring_regex(text, _DECIMAL[mark])
    without_groups = pc.replace_substring(text, thousands, "")
    text = pc.if_else(pc.or_(is_grouped, is_decimal), without_groups, text)
    text = pc.replace_substring(text, mark, ".") if mark == "," else text
    is_number = pc.match_substring_regex(text, _PLAIN)
    numbers = pc.if_else(is_number, text, "nan").cast(pa.float64())
    return np.asarray(pc.fill_null(numbers, np.nan).to_numpy())


def _detect_decimal(text: pa.Array, delimiter: str, setting: str, where: str) -> str:
    if not pc.any(pc.match_substring(text, ",")).as_py():
        return "."

    def first(mark: str) -> str | None:
        """The first value in which a mark can only be the decimal one."""
        is_decimal = pc.match_substring_regex(text, _DECIMAL[mark])
        is_grouped = pc.match_substring_regex(text, _GROUPED[mark])
        matches = text.filter(pc.and_not(is_decimal, is_grouped))
        return matches[0].as_py() if len(matches) else None

    comma = first(",")
    point = first(".")
    prefix = f"{where}: " if where else ""
    if comma and point:
        raise PetsError(
            f"{prefix}{comma!r} has a decimal comma and {point!r} a decimal point: set {setting} "
            "to the one that is meant, or correct the values"
        )
    if comma or point:
        return "," if comma else "."
    grouped = text.filter(pc.match_substring_regex(text, _GROUPED[","]))
    has_points = pc.any(pc.match_substring(text, ".")).as_py()
    if len(grouped) and (delimiter == "," or has_points):
        raise PetsError(
            f"{prefix}{grouped[0].as_py()!r} is ambiguous: its comma may be a decimal comma or "
            f"separate thousands: set {setting} to , or ."
        )
    return ","
