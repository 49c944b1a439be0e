"""Table formats: detection of delimiter, header and encoding, and choice of columns."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pets_core.errors import PetsError
from pets_core.ratings.files import TableFile, choose_columns

ROWS = [("7", "x", "4.5"), ("8", "y", "3")]
POSITIONS = ("user", "item", "rating", "time")


@pytest.fixture
def opened(tmp_path):
    """Function that writes a file and opens it as a table."""

    def open_it(content: bytes, name: str = "ratings.csv", positions=POSITIONS) -> TableFile:
        (tmp_path / name).write_bytes(content)
        return TableFile(str(tmp_path / name), str(tmp_path / "cache"), positions)

    return open_it


def text(delimiter: str, header: bool, end: str = "\n") -> bytes:
    rows = [("user", "item", "rating"), *ROWS] if header else ROWS
    return "".join(delimiter.join(row) + end for row in rows).encode()


def values(file: TableFile) -> list[tuple[str, ...]]:
    read = file.read(dict.fromkeys(("user", "item", "rating"), pa.string()))
    return list(zip(*(column.to_pylist() for column in read.columns), strict=True))


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|", "::"])
@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("name", ["ratings.csv", "ratings.tsv", "u.data"])
def test_text_format_is_detected(opened, delimiter, header, end, bom, name):
    file = opened(bom + text(delimiter, header, end), name)
    assert file.names == ["user", "item", "rating"]
    assert values(file) == ROWS


def test_parquet_is_read(opened, tmp_path):
    columns = dict(zip(POSITIONS, zip(*ROWS, strict=True), strict=False))
    pq.write_table(pa.table(columns), tmp_path / "other.parquet")
    file = opened((tmp_path / "other.parquet").read_bytes(), "Ratings.PARQUET")
    assert values(file) == ROWS


def test_columns_without_a_header_get_default_names(opened):
    assert opened(b"1,2,3,4,5,6\n").names == [*POSITIONS, "column 5", "column 6"]


def test_movielens_items_are_latin_1_and_keep_their_quotes(opened):
    content = '1|Zoë|x\n2|"B" Side|x\n'.encode("latin-1")
    file = opened(content, "u.item", positions=("item", "title"))
    read = file.read({"item": pa.string(), "title": pa.string()})
    assert read.to_pydict() == {"item": ["1", "2"], "title": ["Zoë", '"B" Side']}


@pytest.mark.parametrize(
    ("content", "expected", "has_header"),
    [
        (b"user,item,rating\n", (), True),
        (b"a,b,c\n", (), True),
        (b"a,b,3\n", (), False),
        (b"1,b\n", (), False),
        (b"1,b,3\n", ("b",), True),
    ],
)
def test_header_is_detected(tmp_path, content, expected, has_header):
    (tmp_path / "a.csv").write_bytes(content)
    file = TableFile(str(tmp_path / "a.csv"), str(tmp_path), POSITIONS, expected)
    assert file.has_header == has_header


@pytest.mark.parametrize(
    ("cells", "values", "kind"),
    [
        (["1", " 2 "], [1, 2], pa.int64()),
        (["1", "02"], ["1", "02"], pa.string()),
        (["1"] * 100_000 + ["x"], ["1"] * 100_000 + ["x"], pa.string()),
    ],
)
def test_column_of_whole_numbers_is_read_as_integers(opened, cells, values, kind):
    file = opened("".join(f"{cell},a\n" for cell in ["time", *cells]).encode())
    column = file.read({"time": None})["time"]
    assert (column.to_pylist(), column.type) == (values, kind)


def test_quoted_titles_may_have_commas(opened):
    file = opened(b'movieId,title,genres\n11,"American President, The (1995)",Comedy|Drama\n')
    assert file.read({"title": pa.string()}).to_pydict() == {
        "title": ["American President, The (1995)"]
    }


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (b"", "a.csv", "is empty"),
        (b"\n \n", "a.csv", "is empty"),
        (b"user,item,rating\n", "a.csv", "has no rows"),
        (b"user,item,rating\n1,2,3\n4,5\n", "a.csv", ": line 3 has 2 column"),
        (b"user,item,rating\n1,\x81,3\n", "a.csv", ": line 2 is not valid cp1252"),
        (b"1,2,3" + b",4" * 98 + b"\n", "a.csv", "has 101 columns and no header .*a matrix of"),
        (b"PK\x03\x04....", "ml-100k.zip", r"is compressed\. Decompress it"),
        (b"user,item,rating\n", "a.parquet", "is not a Parquet file"),
        (b"", "a.parquet", "is not a Parquet file"),
    ],
)
def test_invalid_table_is_rejected(opened, content, name, message):
    file = opened(content, name)
    with pytest.raises(PetsError, match=rf"{name} ?{message}"):
        _ = file.names, values(file)


def test_missing_file_is_rejected(tmp_path):
    with pytest.raises(PetsError, match=r"none\.csv does not exist"):
        TableFile(str(tmp_path / "none.csv"), str(tmp_path), POSITIONS)


KNOWN = {"user": ("userId", "user"), "item": ("item",)}


@pytest.mark.parametrize(
    ("header", "wanted", "columns"),
    [
        (b"item,userId\n", {}, {"user": "userId", "item": "item"}),
        (b"item,userId,user\n", {"user": "user"}, {"user": "user", "item": "item"}),
        (b"a,b\n", {"user": "b", "item": "a"}, {"user": "b", "item": "a"}),
    ],
)
def test_columns_are_detected_or_configured(opened, header, wanted, columns):
    assert choose_columns(opened(header), {"user": "auto", "item": "auto"} | wanted, KNOWN) == (
        columns
    )


@pytest.mark.parametrize(
    ("header", "user", "messages"),
    [
        (
            b"users,titel\n", "auto",  # codespell:ignore titel
            ["ratings.user_column = auto: ",
             "no column userId or user, only users, titel.",  # codespell:ignore titel
             "Did you mean users?", "ratings.item_column = auto: ", "no column item"],
        ),
        (b"item,user\n", "usr", ["ratings.user_column = usr: ", "Did you mean user?"]),
        (b"item,user,userId\n", "auto",
         ["has 2 such columns (user, userId): set ratings.user_column to one"]),
        (b"item,user,user\n", "user", ["has 2 such columns (user, user)"]),
        (b"item,user\n", "item", ["used twice: user_column = item, item_column = item"]),
    ],
)  # fmt: skip
def test_ambiguous_or_missing_columns_are_rejected(opened, header, user, messages):
    with pytest.raises(PetsError) as caught:
        choose_columns(opened(header), {"user": user, "item": "auto"}, KNOWN)
    assert [message for message in messages if message not in str(caught.value)] == []
