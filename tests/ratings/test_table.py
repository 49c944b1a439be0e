"""Ratings read and checked: every form says the same, and each fault is told in one sentence."""

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
    """Write a table, as text, bytes or Parquet, and read it."""

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


def csv(columns: Mapping[str, list], mark: str = ",", header: bool = True) -> str:
    rows = [list(columns)] * header + list(zip(*columns.values(), strict=True))
    return "".join(mark.join(map(str, row)) + "\n" for row in rows)


def named_ratings(table: RatingsTable) -> list[tuple[str, str, float]]:
    """Each rating with the ids of its user and item."""
    users, items = table.user_ids.take(table.users), table.item_ids.take(table.items)
    return list(zip(users.to_pylist(), items.to_pylist(), table.ratings.tolist(), strict=True))


WANTED = [("9", "1", 3.5), ("9", "3", 5.0), ("10", "1", 4.0), ("10", "20", 1.0)]


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
def test_every_form_says_the_same(read, content, name):
    table = read(content, name)
    assert named_ratings(table) == WANTED
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
def test_ids_are_sorted_as_numbers_where_all_are(read, ids, order):
    table = read(csv({"user": ids, "item": ids, "rating": [1, 2, 3]}))
    assert table.user_ids.to_pylist() == order
    assert table.times is None


def test_categories_that_no_row_has_are_not_there(read):
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
def test_dates_are_seconds(read, times, seconds):
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
def test_times_in_parquet(read, times):
    assert read(COLUMNS | {"timestamp": times}).times.tolist() == [86_400] * 4


def test_whole_floats_are_times(read):
    """What pandas makes of times where it has read them with gaps."""
    assert read(csv(COLUMNS | {"timestamp": ["978300001.0"] * 4})).times.tolist() == [978300001] * 4


@pytest.mark.parametrize("ids", [["1.0", "b", "2"], ["1.5", "1.0", "2"]])
def test_ids_that_are_not_all_whole_numbers_stay(read, ids):
    table = read(csv({"user": ids, "item": ids, "rating": [1, 2, 3]}))
    assert sorted(table.user_ids.to_pylist()) == sorted(ids)


AMAZON_USERS = ["A2CX7LUOKB2NDG", "#oc-R11D9D7SHXIJB9", "AGKHLEW2SOWHNMFQIJGBECAF7INQ"]
AMAZON_ITEMS = ["B00004Z5M1", "032173294X", "0321732944"]


def amazon(first: list[str], second: list[str]) -> str:
    return csv({"a": first, "b": second, "c": [1, 2, 3], "d": [7, 8, 9]}, header=False)


def test_amazons_order_is_detected(read):
    wanted = sorted(zip(AMAZON_USERS, AMAZON_ITEMS, [1.0, 2.0, 3.0], strict=True))
    assert sorted(named_ratings(read(amazon(AMAZON_ITEMS, AMAZON_USERS)))) == wanted
    assert sorted(named_ratings(read(amazon(AMAZON_USERS, AMAZON_ITEMS)))) == wanted


@pytest.mark.parametrize(
    ("first", "second", "order", "fault"),
    [
        (AMAZON_ITEMS, ["7", "8", "9"], "item-user", r"its first column has ids as Amazon's items"),
        (["x", "y", "z"], AMAZON_USERS, "item-user", r"its second column has .* Amazon's users"),
        (["7", "8", "9"], ["x", "y", "z"], "user-item", None),
        (["0321732944", "0321732945", "0321732946"], ["x", "y", "z"], "user-item", None),
    ],
)
def test_another_order_is_set(read, first, second, order, fault):
    content = amazon(first, second)
    if fault:
        with pytest.raises(PetsError, match=fault + ".*set ratings.column_order to user-item or"):
            read(content)
    else:
        assert named_ratings(read(content)) == named_ratings(
            read(content, column_order="user-item")
        )
    found = read(content, column_order=order)
    users, items = (second, first) if order == "item-user" else (first, second)
    assert sorted(named_ratings(found)) == sorted(zip(users, items, [1.0, 2.0, 3.0], strict=True))


def test_a_header_or_a_setting_outweighs_the_form_of_ids(read):
    wanted = sorted(zip(AMAZON_ITEMS, AMAZON_USERS, [1.0, 2.0, 3.0], strict=True))
    content = amazon(AMAZON_ITEMS, AMAZON_USERS)
    assert sorted(named_ratings(read(content, column_order="user-item"))) == wanted
    assert sorted(named_ratings(read("userId,movieId,rating,time\n" + content))) == wanted


def test_expected_names_decide_on_header_and_delimiter(read, tmp_path):
    columns = {"userId": USERS, "movieId": ITEMS, "5": STARS, "note;x": ["a;b"] * 4}
    assert named_ratings(read(csv(columns), rating_column="5")) == WANTED
    assert titles(tmp_path, "1,name\n1,A\n", item_column="1")[0] == "A"


def test_a_value_may_mean_not_rated(read):
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
def test_the_format_may_be_set(read, content, source):
    assert named_ratings(read(content, **source)) == WANTED


def test_an_ambiguous_decimal_mark_is_refused(read):
    columns = COLUMNS | {"rating": ['"1,000"', '"2,000"', '"3,000"', '"4,000"']}
    with pytest.raises(PetsError, match=r"column rating: '1,000' is ambiguous.*ratings\.decimal"):
        read(csv(columns))
    assert read(csv(columns, ";")).y_range == (1, 4)
    assert read(csv(columns), decimal=",").y_range == (1, 4)
    assert read(csv(columns), decimal=".").y_range == (1000, 4000)


def test_times_may_be_left_out(read):
    assert read(csv(COLUMNS), time_column=None).times is None
    broken = COLUMNS | {"timestamp": ["x"] * 4}
    assert read(csv(broken), time_column=None).times is None


def test_a_scale_may_be_wider_than_the_ratings(read):
    assert read(csv(COLUMNS), y_range=(0, 5.5)).y_range == (0, 5.5)


@pytest.mark.parametrize("scale", [None, (0.1, 0.3)])
def test_a_scale_is_not_rounded_as_ratings_are(read, scale):
    """0.1 and 0.3 are no float32."""
    assert read(csv(COLUMNS | {"rating": [0.3, 0.1, 0.2, 0.3]}), y_range=scale).y_range == (
        0.1,
        0.3,
    )


def changed(**values) -> dict[str, list]:
    """The columns, some with another value in the third row: "timestamp=5"."""
    return COLUMNS | {
        name: [*COLUMNS[name][:2], value, *COLUMNS[name][3:]] for name, value in values.items()
    }


@pytest.mark.parametrize(
    ("columns", "source", "fault"),
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
def test_each_fault_is_told(read, columns, source, fault):
    with pytest.raises(PetsError, match=fault) as caught:
        read(csv(columns), **source)
    assert "ratings.csv" in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "fault"),
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
def test_each_fault_of_parquet_is_told(read, columns, fault):
    with pytest.raises(PetsError, match=fault):
        read(columns)


def test_all_missing_columns_are_told_at_once(read):
    with pytest.raises(PetsError) as caught:
        read("usr,itm,stars\n1,2,3\n".replace("3", "three"))
    assert len(str(caught.value).splitlines()) == 3


def test_of_several_duplicates_the_first_in_the_file_is_told(read):
    columns = {"user": [2, 1, 2, 1], "item": [1, 1, 1, 1], "rating": [1, 2, 3, 4]}
    with pytest.raises(PetsError, match=r"2 row\(s\) repeat .* row 3 \(user 2, .* as row 1\):"):
        read(csv(columns))


TWICE = {
    "user": [1, 2, 1, 1, 2],
    "item": [1, 1, 2, 1, 2],
    "rating": [5, 4, 3, 2, 1],
    "time": [9, 0, 0, 8, 0],
}


@pytest.mark.parametrize(
    ("source", "kept"),
    [({}, 5.0), ({"time_column": None}, 2.0)],
    ids=["the newest", "without times the latest row"],
)
def test_of_several_ratings_the_last_is_kept(read, source, kept):
    table = read(csv(TWICE), duplicates="last", **source)
    assert named_ratings(table) == [
        ("1", "1", kept),
        ("1", "2", 3.0),
        ("2", "1", 4.0),
        ("2", "2", 1.0),
    ]


def test_of_ratings_at_one_time_the_latest_row_is_kept(read):
    table = read(csv(TWICE | {"time": [7] * 5}), duplicates="last")
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
def test_titles_in_every_form(tmp_path, name, content):
    assert titles(tmp_path, content, name) == ["Zoë", "2", "Bœuf, Le", "4"]


def test_titles_of_movielens_1m(tmp_path):
    content = "1.0::Zoë: Part 2 (1995)::Comedy|Drama\n3.0::A::B\n"
    found = titles(tmp_path, content, "movies.dat", "latin-1")
    assert found == ["Zoë: Part 2 (1995)", "2", "A", "4"]


def test_the_format_of_titles_may_be_set(tmp_path):
    found = titles(
        tmp_path, "item^title\n1^Dvořák\n", "a.csv", "cp1250",
        items_delimiter="^", items_encoding="cp1250",
    )  # fmt: skip
    assert found[0] == "Dvořák"


def test_titles_of_movielens_u_item(tmp_path):
    content = '3|The "B" (1995)|01-Jan-1995||http://x/?a,b|0|1\n1|Zoë (1996)|||\n'
    # As published, every line has the same columns.
    content = content.replace("|||\n", "|01-Jan-1996||http://x|0|1\n")
    found = titles(tmp_path, content, "u.item", "latin-1", item_column="item")
    assert found == ["Zoë (1996)", "2", 'The "B" (1995)', "4"]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("movieId,title\n1,A\n1,B\n2,C\n", r"1 item\(s\) have several rows, such as 1"),
        ("movieId,title\n7,A\n", r"has none of the items in .*ratings\.csv, such as 1"),
        ("movieId,titel\n7,A\n", r"title_column = auto: .*no column title or name"),
    ],
)
def test_titles_of_something_else_are_refused(tmp_path, content, fault):
    with pytest.raises(PetsError, match=fault):
        titles(tmp_path, content)
