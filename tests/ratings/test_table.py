"""Reading and validation of ratings and titles in all formats, with error messages."""

import datetime
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pets_core.errors import PetsError
from pets_core.ratings.config import RatingsSourceConfig
from pets_core.ratings.table import RatingsTable, read_ratings, read_titles

USERS, ITEMS = [10, 9, 9, 10], [1, 1, 3, 20]
STARS, TIMES = [4.0, 3.5, 5.0, 1.0], [40, 30, 20, 10]
COLUMNS = {"userId": USERS, "movieId": ITEMS, "rating": STARS, "timestamp": TIMES}


@pytest.fixture
def read(tmp_path):
    """Function that writes a table as text, bytes or Parquet and reads it."""

    def read_it(content, name: str = "ratings.csv", **source) -> RatingsTable:
        path = tmp_path / name
        if isinstance(content, Mapping):
            path = path.with_suffix(".parquet")
            pq.write_table(pa.table(content), path)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        config = RatingsSourceConfig(url=str(path), **source)
        return read_ratings(config, str(tmp_path / "cache"))

    return read_it


def csv(columns: Mapping[str, list], delimiter: str = ",", header: bool = True) -> str:
    rows = [list(columns)] * header + list(zip(*columns.values(), strict=True))
    return "".join(delimiter.join(map(str, row)) + "\n" for row in rows)


def named_ratings(table: RatingsTable) -> list[tuple[str, str, float]]:
    """Return each rating with the ids of its user and item."""
    users, items = table.user_ids.take(table.users), table.item_ids.take(table.items)
    return list(zip(users.to_pylist(), items.to_pylist(), table.ratings.tolist(), strict=True))


EXPECTED = [("9", "1", 3.5), ("9", "3", 5.0), ("10", "1", 4.0), ("10", "20", 1.0)]


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (csv(COLUMNS), "ratings.csv"),
        (csv(COLUMNS, "\t"), "ratings.tsv"),
        (csv(COLUMNS, "\t", header=False), "u.data"),
        (csv({n: COLUMNS[n] for n in reversed(COLUMNS)}), "other-order.csv"),
        (csv(COLUMNS).replace(",", ", "), "blanks.csv"),
        (csv(COLUMNS, "::", header=False), "ratings.dat"),
        (csv(COLUMNS, ";").replace(".", ","), "decimal-comma.csv"),
        (csv(COLUMNS | {"userId": ["10", "9.0", "9", "10.00"]}), "floats-as-ids.csv"),
        (csv(COLUMNS).encode("utf-16"), "utf-16.csv"),
        (COLUMNS, "ints.parquet"),
        (COLUMNS | {"userId": pa.array(map(str, USERS), pa.large_string())}, "text.parquet"),
        (COLUMNS | {"userId": pa.array(USERS, pa.float64())}, "pandas.parquet"),
        (COLUMNS | {"movieId": pa.array(ITEMS).dictionary_encode()}, "categories.parquet"),
        (COLUMNS | {"rating": [str(value) for value in STARS]}, "text-ratings.parquet"),
    ],
    ids=lambda value: value if isinstance(value, str) and "\n" not in value else "",
)
def test_every_format_gives_the_same_ratings(read, content, name):
    table = read(content, name)
    assert named_ratings(table) == EXPECTED
    assert table.times.tolist() == [30, 20, 40, 10]
    assert [table.user_ids.to_pylist(), table.item_ids.to_pylist()] == [
        ["9", "10"],
        ["1", "3", "20"],
    ]
    assert table.y_range == (1.0, 5.0)
    kinds = [table.users.dtype, table.items.dtype, table.ratings.dtype, table.times.dtype]
    assert kinds == [np.int32, np.int32, np.float32, np.int64]


@pytest.mark.parametrize(
    ("ids", "order"),
    [
        (["10", "9", "-1"], ["-1", "9", "10"]),
        (["10", "9", "b"], ["10", "9", "b"]),
        (["10", "09", "9"], ["09", "10", "9"]),
        (["é", "z", "NA"], ["NA", "z", "é"]),
    ],
)
def test_ids_are_sorted_as_numbers_if_all_are_whole_numbers(read, ids, order):
    table = read(csv({"user": ids, "item": ids, "rating": [1, 2, 3]}))
    assert table.user_ids.to_pylist() == order
    assert table.times is None


def test_unused_categories_are_dropped(read):
    categories = pa.DictionaryArray.from_arrays(pa.array([0, 1, 1, 0]), ["10", "9", "unused"])
    assert read(COLUMNS | {"userId": categories}).user_ids.to_pylist() == ["9", "10"]


@pytest.mark.parametrize(
    ("times", "seconds"),
    [
        (["1970-01-02 00:00:01"] * 4, 86_401),
        (["1970-01-02"] * 4, 86_400),
        (["1970-01-02T00:00:01Z"] * 4, 86_401),
        (["1970-01-01 00:00:01.500"] * 4, 1),
        (["-5"] * 4, -5),
    ],
)
def test_dates_are_converted_to_seconds(read, times, seconds):
    assert read(csv(COLUMNS | {"timestamp": times})).times.tolist() == [seconds] * 4


@pytest.mark.parametrize(
    "times",
    [
        [datetime.date(1970, 1, 2)] * 4,
        pa.array([86_400_000_000_000] * 4, pa.timestamp("ns", "UTC")),
        pa.array([86_400] * 4, pa.float64()),
        ["1970-01-02"] * 4,
        ["86400"] * 4,
    ],
)
def test_parquet_times_are_converted_to_seconds(read, times):
    assert read(COLUMNS | {"timestamp": times}).times.tolist() == [86_400] * 4


def test_whole_floats_are_valid_times(read):
    """pandas writes times with missing values as floats."""
    assert read(csv(COLUMNS | {"timestamp": ["978300001.0"] * 4})).times.tolist() == [978300001] * 4


@pytest.mark.parametrize("ids", [["1.0", "b", "2"], ["1.5", "1.0", "2"]])
def test_ids_that_are_not_all_whole_numbers_are_unchanged(read, ids):
    table = read(csv({"user": ids, "item": ids, "rating": [1, 2, 3]}))
    assert sorted(table.user_ids.to_pylist()) == sorted(ids)


AMAZON_USERS = ["A2CX7LUOKB2NDG", "#oc-R11D9D7SHXIJB9", "AGKHLEW2SOWHNMFQIJGBECAF7INQ"]
AMAZON_ITEMS = ["B00004Z5M1", "032173294X", "0321732944"]


def amazon(first: list[str], second: list[str]) -> str:
    return csv({"a": first, "b": second, "c": [1, 2, 3], "d": [7, 8, 9]}, header=False)


def test_amazon_column_order_is_detected(read):
    expected = sorted(zip(AMAZON_USERS, AMAZON_ITEMS, [1.0, 2.0, 3.0], strict=True))
    assert sorted(named_ratings(read(amazon(AMAZON_ITEMS, AMAZON_USERS)))) == expected
    assert sorted(named_ratings(read(amazon(AMAZON_USERS, AMAZON_ITEMS)))) == expected


@pytest.mark.parametrize(
    ("first", "second", "order", "message"),
    [
        (AMAZON_ITEMS, ["7", "8", "9"], "item-user", r"its first column has ids as Amazon's items"),
        (["x", "y", "z"], AMAZON_USERS, "item-user", r"its second column has .* Amazon's users"),
        (["7", "8", "9"], ["x", "y", "z"], "user-item", None),
        (["0321732944", "0321732945", "0321732946"], ["x", "y", "z"], "user-item", None),
    ],
)
def test_column_order_can_be_set(read, first, second, order, message):
    content = amazon(first, second)
    if message:
        with pytest.raises(PetsError, match=message + ".*set ratings.column_order to user-item or"):
            read(content)
    else:
        assert named_ratings(read(content)) == named_ratings(
            read(content, column_order="user-item")
        )
    found = read(content, column_order=order)
    users, items = (second, first) if order == "item-user" else (first, second)
    assert sorted(named_ratings(found)) == sorted(zip(users, items, [1.0, 2.0, 3.0], strict=True))


def test_header_or_setting_overrides_the_detected_column_order(read):
    expected = sorted(zip(AMAZON_ITEMS, AMAZON_USERS, [1.0, 2.0, 3.0], strict=True))
    content = amazon(AMAZON_ITEMS, AMAZON_USERS)
    assert sorted(named_ratings(read(content, column_order="user-item"))) == expected
    assert sorted(named_ratings(read("userId,movieId,rating,time\n" + content))) == expected


def test_expected_names_determine_header_and_delimiter(read, tmp_path):
    columns = {"userId": USERS, "movieId": ITEMS, "5": STARS, "note;x": ["a;b"] * 4}
    assert named_ratings(read(csv(columns), rating_column="5")) == EXPECTED
    assert titles(tmp_path, "1,name\n1,A\n", item_column="1")[0] == "A"


def test_not_rated_value_is_dropped(read):
    columns = COLUMNS | {"rating": [99, -7.82, 8.79, 99.0]}
    table = read(csv(columns), not_rated=99)
    assert named_ratings(table) == [
        ("9", "1", pytest.approx(-7.82)),
        ("9", "3", pytest.approx(8.79)),
    ]
    assert (table.y_range, table.times.tolist()) == ((-7.82, 8.79), [30, 20])
    assert table.user_ids.to_pylist() == ["9"]
    assert named_ratings(read(columns, not_rated=99)) == named_ratings(table)
    with pytest.raises(PetsError, match=r"every rating is ratings.not_rated = 99: set"):
        read(csv(COLUMNS | {"rating": [99] * 4}), not_rated=99)


@pytest.mark.parametrize(
    ("content", "source"),
    [
        (csv(COLUMNS, "^"), {"delimiter": "^"}),
        (csv(COLUMNS, "\t"), {"delimiter": "tab"}),
        (csv(COLUMNS).encode("cp037"), {"encoding": "cp037"}),
        (csv(COLUMNS, ";").replace(".", ","), {"decimal": ","}),
    ],
)
def test_format_can_be_set(read, content, source):
    assert named_ratings(read(content, **source)) == EXPECTED


def test_ambiguous_decimal_mark_is_rejected(read):
    columns = COLUMNS | {"rating": ['"1,000"', '"2,000"', '"3,000"', '"4,000"']}
    with pytest.raises(PetsError, match=r"column rating: '1,000' is ambiguous.*ratings\.decimal"):
        read(csv(columns))
    assert read(csv(columns, ";")).y_range == (1, 4)
    assert read(csv(columns), decimal=",").y_range == (1, 4)
    assert read(csv(columns), decimal=".").y_range == (1000, 4000)


def test_time_column_can_be_disabled(read):
    assert read(csv(COLUMNS), time_column=None).times is None
    broken = COLUMNS | {"timestamp": ["x"] * 4}
    assert read(csv(broken), time_column=None).times is None


def test_y_range_may_be_wider_than_the_ratings(read):
    assert read(csv(COLUMNS), y_range=(0, 5.5)).y_range == (0, 5.5)


@pytest.mark.parametrize("y_range", [None, (0.1, 0.3)])
def test_y_range_is_not_rounded_to_float32(read, y_range):
    """0.1 and 0.3 are not exact in float32."""
    assert read(csv(COLUMNS | {"rating": [0.3, 0.1, 0.2, 0.3]}), y_range=y_range).y_range == (
        0.1,
        0.3,
    )


def changed(**values) -> dict[str, list]:
    """Return the columns with other values in the third row, such as `timestamp=5`."""
    return COLUMNS | {
        name: [*COLUMNS[name][:2], value, *COLUMNS[name][3:]] for name, value in values.items()
    }


@pytest.mark.parametrize(
    ("columns", "source", "message"),
    [
        (changed(rating=""), {}, "row 3 has no rating: correct or remove"),
        (changed(rating="x"), {}, "row 3 has rating = x, expected a finite number: correct"),
        (changed(rating="nan"), {}, "row 3 has rating = nan, expected a finite number"),
        (changed(rating="inf"), {}, "row 3 has rating = inf, expected a finite number"),
        (changed(rating="1e39"), {}, "row 3 has rating = 1e39, expected a finite number"),
        (changed(rating=6), {"y_range": (1, 5)},
         r"row 3 has rating = 6, outside ratings\.y_range = \(1, 5\): correct them, or widen"),
        (COLUMNS | {"rating": [1, 0, 7, 2]}, {"y_range": (1, 5)},
         r"row 2 has rating = 0, outside .* \(and 1 more\): correct"),
        (changed(userId=""), {}, "row 3 has no userId: remove such rows"),
        (changed(userId="nan"), {}, "row 3 has no userId"),
        (changed(movieId=" "), {}, "row 3 has no movieId"),
        (changed(timestamp=""), {}, "row 3 has no timestamp: correct .*time_column = null"),
        (changed(timestamp="soon"), {}, "row 3 has timestamp = 'soon', expected whole numbers"),
        (changed(timestamp="1.5"), {}, "row 3 has timestamp = '1.5', expected whole numbers"),
        (changed(timestamp="2024-01-01"), {}, "row 3 has timestamp = '2024-01-01', expected"),
        (COLUMNS | {"timestamp": ["2024-13-01"] * 4}, {}, "timestamp is .*: expected whole num"),
        (COLUMNS | {"rating": [3] * 4}, {}, r"all values of rating are equal \(3\): set"),
        (changed(movieId=1), {}, r"1 row\(s\) repeat a pair of user and item: the first is row 3 "
         r"\(user 9, item 1, as row 2\): remove such rows, or set ratings.duplicates = last"),
        ({"userId": USERS, "movieId": ITEMS, "rating": STARS}, {"split": "time"},
         "split = time: .* has no column timestamp or time, only userId, movieId, rating"),
        ({"userId": USERS, "movieId": ITEMS}, {}, "rating_column = auto: .* no column rating"),
        (COLUMNS, {"time_column": "when"}, "time_column = when: .* no column when"),
    ],
)  # fmt: skip
def test_each_error_in_a_table_is_reported(read, columns, source, message):
    with pytest.raises(PetsError, match=message) as caught:
        read(csv(columns), **source)
    assert "ratings.csv" in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (changed(rating=None), "row 3 has no rating"),
        (changed(rating=float("nan")), "row 3 has rating = nan"),
        (changed(userId=None), "row 3 has no userId"),
        (changed(timestamp=None), "row 3 has no timestamp"),
        (COLUMNS | {"rating": [True, False] * 2}, "column rating is bool: expected numbers"),
        (COLUMNS | {"userId": [1.5] * 4}, "userId is double: expected whole numbers or text"),
        (COLUMNS | {"userId": [[1]] * 4}, "column userId is list.*: expected numbers"),
        (COLUMNS | {"timestamp": [[1]] * 4}, "timestamp is list.*: expected whole .*, or dates"),
        (COLUMNS | {"rating": pa.nulls(4)}, "has no rating|column rating is null"),
    ],
)
def test_each_error_in_parquet_is_reported(read, columns, message):
    with pytest.raises(PetsError, match=message):
        read(columns)


def test_all_missing_columns_are_reported_at_once(read):
    with pytest.raises(PetsError) as caught:
        read("usr,itm,stars\n1,2,3\n".replace("3", "three"))
    assert len(str(caught.value).splitlines()) == 3


def test_first_duplicate_in_the_file_is_reported(read):
    columns = {"user": [2, 1, 2, 1], "item": [1, 1, 1, 1], "rating": [1, 2, 3, 4]}
    with pytest.raises(PetsError, match=r"2 row\(s\) repeat .* row 3 \(user 2, .* as row 1\):"):
        read(csv(columns))


DUPLICATES = {
    "user": [1, 2, 1, 1, 2],
    "item": [1, 1, 2, 1, 2],
    "rating": [5, 4, 3, 2, 1],
    "time": [9, 0, 0, 8, 0],
}


@pytest.mark.parametrize(
    ("source", "kept"),
    [({}, 5.0), ({"time_column": None}, 2.0)],
    ids=["newest", "last row without times"],
)
def test_last_of_several_ratings_is_kept(read, source, kept):
    table = read(csv(DUPLICATES), duplicates="last", **source)
    assert named_ratings(table) == [
        ("1", "1", kept),
        ("1", "2", 3.0),
        ("2", "1", 4.0),
        ("2", "2", 1.0),
    ]


def test_last_row_is_kept_of_ratings_at_the_same_time(read):
    table = read(csv(DUPLICATES | {"time": [7] * 5}), duplicates="last")
    assert named_ratings(table)[0] == ("1", "1", 2.0)


def titles(tmp_path, content: str, name: str = "movies.csv", encoding: str = "utf8", **source):
    (tmp_path / name).write_text(content, encoding=encoding)
    config = RatingsSourceConfig(url="ratings.csv", items_url=str(tmp_path / name), **source)
    ids = pa.array(["1", "2", "3", "4"])
    return read_titles(config, str(tmp_path / "cache"), ids).to_pylist()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("movies.csv", 'movieId,title,genres\n3,"Bœuf, Le",A|B\n1,Zoë,A\n2,,A\n9,X,A\n'),
        ("items.tsv", "title\titem_id\nBœuf, Le\t3\nZoë\t 1\n\t2\n"),
        ("names.csv", 'id,name\n1,Zoë\n3,"Bœuf, Le"\n'),
    ],
)
def test_titles_are_read_in_every_format(tmp_path, name, content):
    assert titles(tmp_path, content, name) == ["Zoë", "2", "Bœuf, Le", "4"]


def test_movielens_1m_titles_are_read(tmp_path):
    content = "1.0::Zoë: Part 2 (1995)::Comedy|Drama\n3.0::A::B\n"
    found = titles(tmp_path, content, "movies.dat", "latin-1")
    assert found == ["Zoë: Part 2 (1995)", "2", "A", "4"]


def test_title_format_can_be_set(tmp_path):
    found = titles(
        tmp_path, "item^title\n1^Dvořák\n", "a.csv", "cp1250",
        items_delimiter="^", items_encoding="cp1250",
    )  # fmt: skip
    assert found[0] == "Dvořák"


def test_movielens_u_item_titles_are_read(tmp_path):
    content = '3|The "B" (1995)|01-Jan-1995||http://x/?a,b|0|1\n1|Zoë (1996)|||\n'
    # As published, every line has the same columns.
    content = content.replace("|||\n", "|01-Jan-1996||http://x|0|1\n")
    found = titles(tmp_path, content, "u.item", "latin-1", item_column="item")
    assert found == ["Zoë (1996)", "2", 'The "B" (1995)', "4"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("movieId,title\n1,A\n1,B\n2,C\n", r"1 item\(s\) have several rows, such as 1"),
        ("movieId,title\n7,A\n", r"has none of the items in .*ratings\.csv, such as 1"),
        (
            "movieId,titel\n7,A\n",  # codespell:ignore titel
            r"title_column = auto: .*no column title or name",
        ),
    ],
)
def test_titles_of_other_items_are_rejected(tmp_path, content, message):
    with pytest.raises(PetsError, match=message):
        titles(tmp_path, content)
