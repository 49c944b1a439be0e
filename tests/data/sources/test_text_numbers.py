"""Numbers with a decimal point or a decimal comma."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pets_core.data.sources.text_numbers import parse_numbers
from pets_core.errors import PetsError

NAN = float("nan")


@pytest.mark.parametrize(
    ("values", "numbers"),
    [
        (["3", "3.5", " -1e3 ", ".5", "1.234"], [3, 3.5, -1000, 0.5, 1.234]),
        (["3,5", "4"], [3.5, 4]),
        (["1.234,5", "2,0", "1.234"], [1234.5, 2, 1234]),
        (["1,234.5", "2.0", "1,234"], [1234.5, 2, 1234]),
        (["1,234,567", "1.5"], [1234567, 1.5]),
        (["0,125", "1,2"], [0.125, 1.2]),
        (["x", "", None, "nan", "1.2.3", "4.5"], [NAN, NAN, NAN, NAN, NAN, 4.5]),
        (["x, y", "4.5"], [NAN, 4.5]),
        ([], []),
    ],
)
def test_decimal_separator_is_detected(values, numbers):
    text = pa.array(values, pa.string())
    np.testing.assert_array_equal(parse_numbers(text), numbers)
    np.testing.assert_array_equal(parse_numbers(pa.chunked_array([text])), numbers)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["1,234", "5"], "a.csv: column b: '1,234' is ambiguous: .*Set r.decimal to , or ."),
        (["1,234", "1.234"], "'1,234' is ambiguous"),
        (["3,5", "4.5"], "'3,5' has a decimal comma and '4.5' a decimal point. Set r.decimal"),
    ],
)
def test_ambiguous_decimal_separator_is_refused(values, message):
    with pytest.raises(PetsError, match=message):
        parse_numbers(pa.array(values), setting="r.decimal", where="a.csv: column b")


@pytest.mark.parametrize(
    ("decimal", "delimiter", "number"), [(",", ",", 1.234), (".", ",", 1234), (None, ";", 1.234)]
)
def test_set_separator_or_other_delimiter_resolves_the_ambiguity(decimal, delimiter, number):
    assert parse_numbers(pa.array(["1,234"]), decimal, delimiter=delimiter).tolist() == [number]


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False)), st.sampled_from(".,"))
def test_written_numbers_are_read_back(numbers, separator):
    values = pa.array([str(number).replace(".", separator) for number in numbers], pa.string())
    assert parse_numbers(values, separator).tolist() == numbers
