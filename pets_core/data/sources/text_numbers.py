"""Parse numbers with a decimal point or a decimal comma."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pets_core.errors import PetsError

__all__ = ["parse_numbers"]

_EXPONENT = "([eE][+-]?[0-9]+)?"
_PLAIN = rf"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+){_EXPONENT}$"
_GROUPED = {separator: rf"^[+-]?[0-9]{{1,3}}([{separator}][0-9]{{3}})+$" for separator in ",."}
"""Integers with thousands separators, by separator."""
_DECIMAL = {
    separator: rf"^[+-]?([0-9]+|[0-9]{{1,3}}([{other}][0-9]{{3}})+)?[{separator}][0-9]*{_EXPONENT}$"
    for separator, other in (",.", ".,")
}
"""Numbers with a decimal separator, by separator; the other one may separate thousands."""


def parse_numbers(
    values: pa.Array | pa.ChunkedArray,
    decimal: str | None = None,
    *,
    delimiter: str = ",",
    setting: str = "decimal",
    where: str = "",
) -> npt.NDArray[np.float64]:
    """Parse text as numbers with a decimal point or a decimal comma.

    All values have the same decimal separator, so pass a whole column or its distinct values. It is
    a point if no value contains a comma. Otherwise values such as "3,5" or "1.234,5" have a decimal
    comma, and "1,234.5" or "4.5" a decimal point.

    Args:
        values: Strings (N,).
        decimal: Decimal separator, "." or ","; None: detected.
        delimiter: Delimiter of the file. If it is not a comma, "1,234" is 1.234.
        setting: Name of the setting for `decimal` in messages.
        where: Location of the values in messages, such as "ratings.csv: column rating".

    Returns:
        float64 (N,); NaN for values that are not numbers.

    Raises:
        PetsError: The decimal separator is ambiguous (all commas may separate thousands) or mixed
            (some values have a decimal comma and others a decimal point).
    """
    text = pc.utf8_trim_whitespace(values)
    separator = decimal or _detect_decimal(text, delimiter, setting, where)
    thousands = "." if separator == "," else ","
    is_grouped = pc.match_substring_regex(text, _GROUPED[thousands])
    is_decimal = pc.match_substring_regex(text, _DECIMAL[separator])
    without_groups = pc.replace_substring(text, thousands, "")
    text = pc.if_else(pc.or_(is_grouped, is_decimal), without_groups, text)
    text = pc.replace_substring(text, separator, ".") if separator == "," else text
    is_number = pc.match_substring_regex(text, _PLAIN)
    numbers = pc.if_else(is_number, text, "nan").cast(pa.float64())
    return np.asarray(pc.fill_null(numbers, np.nan).to_numpy())


def _detect_decimal(text: pa.Array, delimiter: str, setting: str, where: str) -> str:
    if not pc.any(pc.match_substring(text, ",")).as_py():
        return "."

    def first(separator: str) -> str | None:
        """Return the first value in which `separator` can only be the decimal separator."""
        is_decimal = pc.match_substring_regex(text, _DECIMAL[separator])
        is_grouped = pc.match_substring_regex(text, _GROUPED[separator])
        matches = text.filter(pc.and_not(is_decimal, is_grouped))
        return matches[0].as_py() if len(matches) else None

    comma = first(",")
    point = first(".")
    prefix = f"{where}: " if where else ""
    if comma and point:
        raise PetsError(
            f"{prefix}{comma!r} has a decimal comma and {point!r} a decimal point. Set {setting} "
            "to the right one, or correct the values"
        )
    if comma or point:
        return "," if comma else "."
    grouped = text.filter(pc.match_substring_regex(text, _GROUPED[","]))
    has_points = pc.any(pc.match_substring(text, ".")).as_py()
    if len(grouped) and (delimiter == "," or has_points):
        raise PetsError(
            f"{prefix}{grouped[0].as_py()!r} is ambiguous: its comma may be a decimal comma or "
            f"a thousands separator. Set {setting} to , or ."
        )
    return ","
