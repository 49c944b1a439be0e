"""Text tables: format detection, unchanged cells, errors with a remedy."""

import csv
import io

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from pets_core.data.sources import text_table
from pets_core.data.sources.text_table import TextOptions, open_text_table
from pets_core.errors import PetsError

DELIMITERS = [",", ";", "\t", "|"]
ROWS = [["image", "label", "note"], ["a.jpg", "cat", "x; y|z, w"], ["b.jpg", "01", "NA"]]


@pytest.fixture
def open_table(tmp_path):
    """Write a file and open it as a table."""

    def run(content: str | bytes, columns=(), **options):
        path = tmp_path / "table.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return open_text_table(path, columns, **options)

    return run


def to_csv(rows, delimiter=",", **options) -> str:
    sink = io.StringIO(newline="")
    csv.writer(sink, delimiter=delimiter, **options).writerows(rows)
    return sink.getvalue()


def cells(table, columns=None) -> list[list[str]]:
    read = table.read(table.names if columns is None else columns)
    return [list(row) for row in zip(*(c.to_pylist() for c in read.columns), strict=True)]


# A byte order mark or NUL bytes identify the encoding, so cells can contain any character.
any_text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=6)
western_text = st.text("abcXYZ019 .,;:|\t\"'\n\r-_/éÀÿßñ", max_size=8)
"""No two of its letters in cp1252 form one character in UTF-8."""


def tables(cell: st.SearchStrategy[str]) -> st.SearchStrategy[list[list[str]]]:
    """Rows of two to five columns with a recognisable header."""

    def of_width(width: int) -> st.SearchStrategy[list[list[str]]]:
        header = [f"column {n}" for n in range(width)]
        row = st.lists(cell, min_size=width, max_size=width)
        return st.lists(row, min_size=1, max_size=6).map(lambda rows: [header, *rows])

    return st.integers(2, 5).flatmap(of_width)


def assert_read_back(open_table, rows, text, encoding, **options):
    table = open_table(text.encode(encoding), rows[0], **options)
    assert table.names == rows[0]
    assert cells(table) == rows[1:]
    columns = rows[0][::-2]
    expected = [[row[rows[0].index(name)] for name in columns] for row in rows[1:]]
    assert cells(table, columns) == expected
    return table


many_examples = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@many_examples
@given(
    rows=tables(any_text),
    delimiter=st.sampled_from(DELIMITERS),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_csv_writer_output_is_read_back(open_table, rows, delimiter, encoding, quoting):
    text = to_csv(rows, delimiter, quoting=quoting)
    table = assert_read_back(open_table, rows, text, encoding)
    assert table.format.delimiter == delimiter
    family = encoding.removesuffix("-sig")
    assert table.format.encoding in (family, f"{family}-le")


@many_examples
@given(
    rows=tables(western_text),
    delimiter=st.sampled_from(DELIMITERS),
    encoding=st.sampled_from(["cp1252", "utf-16-le", "utf-16-be"]),
)
def test_encodings_without_a_byte_order_mark_are_detected(open_table, rows, delimiter, encoding):
    text = to_csv(rows, delimiter, quoting=csv.QUOTE_ALL)
    table = assert_read_back(open_table, rows, text, encoding)
    assert table.format.encoding == (
        "utf-8" if encoding == "cp1252" and text.isascii() else encoding
    )


@many_examples
@given(
    rows=tables(st.text(st.characters(exclude_characters="\0\r\n\x1f", exclude_categories=["Cs"]))),
    delimiter=st.sampled_from(["\t", "|", "::"]),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_text_without_quoting_is_read_back(open_table, rows, delimiter, end):
    # A ":" at the edge of a cell would become part of a "::" delimiter.
    assume(not any(mark in cell for row in rows for cell in row for mark in (delimiter, ":")))
    text = "".join(delimiter.join(row) + end for row in rows)
    assert_read_back(open_table, rows, text, "utf-8", options=TextOptions(quoting=False))


@pytest.mark.parametrize("num_rows", [1, 2, 3, 100])
def test_chunks_have_all_rows(open_table, monkeypatch, num_rows):
    monkeypatch.setattr(text_table, "_CHUNK_ROWS", num_rows)
    table = open_table(to_csv(ROWS[:1] + ROWS[1:] * 3))
    chunks = list(table.chunks([2, 0]))
    assert [chunk.column_names for chunk in chunks] == [["note", "image"]] * len(chunks)
    assert max(chunk.num_rows for chunk in chunks) <= num_rows
    assert [note for chunk in chunks for note in chunk["note"].to_pylist()] == [
        "x; y|z, w", "NA",
    ] * 3  # fmt: skip


def test_coded_column_is_dictionary_encoded(open_table):
    table = open_table(to_csv(ROWS[:1] + ROWS[1:] * 3))
    (read,) = table.chunks([1, 0], coded=[1])
    assert str(read["label"].type).startswith("dictionary<values=string, indices=int32")
    assert read["label"].to_pylist() == ["cat", "01"] * 3
    assert str(read["image"].type) == "string"


@pytest.mark.parametrize(
    ("content", "columns", "delimiter", "names"),
    [
        ("image;label\na,b;c\nd,e;f\n", [], ";", ["image", "label"]),
        ("image,label\na;b,c\nd;e,f\n", [], ",", ["image", "label"]),
        # Both delimiters split each line into two columns: the header decides.
        ("a;b,c\n1;2,3\n", ["c"], ",", ["a;b", "c"]),
        ("a;b,c\n1;2,3\n", ["a"], ";", ["a", "b,c"]),
        # Only a comma gives each line the same number of columns.
        ("a,b;c\n1,2;3\n4,5;6;7\n", [], ",", ["a", "b;c"]),
        ("image\na b\n", ["image"], ",", ["image"]),
        ("image\n", [], ",", ["image"]),
        (" image ; label ;\na;b;\nc;d;\n", ["label"], ";", ["image", "label"]),
        ("image;label\na;b;\n\n  \nc;d\n", [], ";", ["image", "label"]),
        ("image;label;\na;b;unnamed\n", [], ";", ["image", "label"]),
        ("\n\nimage;label\na;b\n", [], ";", ["image", "label"]),
        ('"image;x";"label"\r\n"a";"b;c"\r\n', [], ";", ["image;x", "label"]),
        ("id::title::genres\n1::A: B::x|y\n2::C::x|z\n", [], "::", ["id", "title", "genres"]),
        ("image^label\na^b\n", [], "^", ["image", "label"]),
    ],
)  # fmt: skip
def test_the_delimiter_is_detected(open_table, content, columns, delimiter, names):
    options = TextOptions(delimiter="^") if delimiter == "^" else None
    table = open_table(content, columns, options=options)
    assert (table.format.delimiter, table.names) == (delimiter, names)
    assert all(len(row) == len(names) for row in cells(table))


@pytest.mark.parametrize("size", range(1, 9))
def test_blocks_do_not_cut_a_long_delimiter(tmp_path, size):
    path = tmp_path / "a.dat"
    path.write_text("1::a:b::2\n3:: :c::4\n")
    found = open_text_table(path, has_header=False).format
    with found.open(path) as text:
        blocks = iter(lambda: text.read(size), "")
        assert "".join(blocks) == "1\x1fa:b\x1f2\n3\x1f :c\x1f4\n"


def test_table_without_a_header_has_numbered_columns(open_table):
    table = open_table("1::A: B::5\n2::C::4\n", has_header=lambda cells: not cells[0].isdigit())
    assert table.names == ["column 1", "column 2", "column 3"]
    assert table.first_row == ["1", "A: B", "5"]
    assert cells(table, ["column 3", "column 1"]) == [["5", "1"], ["4", "2"]]


def test_a_replacement_character_is_valid_utf8(open_table):
    table = open_table("image,label\na,\ufffd\n")
    assert (table.format.encoding, cells(table)) == ("utf-8", [["a", "\ufffd"]])


def test_quotes_can_be_literal_text(open_table):
    content = '1|"B" Side|x\n2|5" disk|"\n'
    assert cells(open_table(content, has_header=False)) == [
        ["1", '"B" Side', "x"],
        ["2", '5" disk', '"'],
    ]


def test_quotes_far_from_the_header_can_be_literal_text(open_table):
    content = "id|title\n" + "1|A\n" * 200 + '2|"B" Side\n'
    table = open_table(content)
    assert not table.format.is_quoted
    assert cells(table)[-1] == ["2", '"B" Side']


def test_set_options_override_detection(open_table):
    options = TextOptions(delimiter="tab", encoding="latin-1", quoting=False)
    table = open_table('a;b\t"c"\n1;2\t\xe9\n'.encode("latin-1"), options=options)
    assert table.names == ["a;b", '"c"']
    assert cells(table) == [["1;2", "é"]]
    assert str(table.format) == "delimiter tab, encoding iso8859-1"


def test_byte_order_mark_is_not_part_of_the_first_column_name(open_table):
    content = "image,label\na,b\n".encode("utf-16")
    assert open_table(content, options=TextOptions(encoding="utf-16-le")).names == [
        "image",
        "label",
    ]


def test_table_without_rows_is_empty(open_table):
    table = open_table("image,label\n")
    assert table.read(["label"]).to_pydict() == {"label": []}
    assert list(table.chunks([0, 1])) == []


def test_large_cell_is_read(open_table):
    assert cells(open_table(to_csv([["a", "b"], ["x" * 200_000, "y,z"]])))[0][1] == "y,z"


LONG = "image,label\n" + "a,bc\n" * 300_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\xef\xbb\xbf\r\n \n", "is empty"),
        ("image,label\na,b\nc\n", r"line 3 has 1 column\(s\), expected 2"),
        ("image,label\na,b,c\n", r"line 2 has 3 column\(s\), expected 2"),
        ("image,label\r\n\r\na,b\r\n,,\r\n,x,\r\n,,x\r\n", r"line 6 has 3 column\(s\)"),
        ('image,label\n"a\nb",c\n"d",e,f\n', r"line 4 has 3 column\(s\)"),
        (LONG + "c\n", r"line 300002 has 1 column\(s\)"),
        (LONG + '"c"\n', r"line 300002 has 1 column\(s\)"),
        (LONG + '"c,d\n', "line 300002 has invalid CSV quoting"),
        (LONG + "c,\0\n", "line 300002 has a NUL character"),
        (LONG + 'c,"\0"\n', "line 300002 has a NUL character"),
        (LONG.encode() + "ü,ö\nä,é\n".encode() + b"c,\xff\n", "line 300004 is not valid utf-8"),
        (LONG.encode() + b"c,\xff\nd,\x81\n", "line 300003 is not valid cp1252"),
        ('image,label\n"B" side,x\n', "line 2 has invalid CSV quoting: .*set t.delimiter"),
        ("image,label\na,b\n".encode("utf-16")[:-1], "line 2 is not valid utf-16-le"),
        (b"PK\x03\x04....", "is compressed. Decompress it"),
        (b"\x1f\x8b\x08....", "is compressed. Decompress it"),
        (b"PAR1....", "is a Parquet file. Rename it so that its name ends in .parquet"),
    ],
)
def test_invalid_tables_are_refused(open_table, content, message):
    with pytest.raises(PetsError, match=rf"table\.csv:? {message}") as caught:
        open_table(content, options=TextOptions(prefix="t."))
    if "line" in message:
        assert "(read with delimiter ','" in str(caught.value)
        assert "set t.delimiter, t.encoding or t.quoting" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"delimiter": ":,"},
            "t.delimiter = :,: unsupported delimiter. Set one ASCII character, :: or tab",
        ),
        ({"delimiter": "§"}, "t.delimiter = §"),
        ({"encoding": "utf-9"}, "t.encoding = utf-9: unknown encoding"),
        ({"encoding": "rot13"}, "t.encoding = rot13: unknown encoding"),
    ],
)
def test_invalid_options_are_refused(open_table, options, message):
    with pytest.raises(PetsError, match=message):
        open_table("a,b\n1,2\n", options=TextOptions(prefix="t.", **options))


def test_other_columns_may_have_repeated_names(open_table):
    table = open_table("image,label,label\na,b,c\n")
    assert cells(table, ["image"]) == [["a"]]


@pytest.mark.parametrize("delimiter", [",", ";"])
def test_blanks_before_quotes_are_not_part_of_a_cell(tmp_path, delimiter):
    path = tmp_path / "t.csv"
    path.write_text(f'image{delimiter} label\na.jpg{delimiter} "cat"\nb.jpg{delimiter}  "dog"\n')
    assert open_text_table(path).read(["image", "label"]).to_pydict() == {
        "image": ["a.jpg", "b.jpg"], "label": ["cat", "dog"],
    }  # fmt: skip
    path.write_text(f"image{delimiter}label\na.jpg{delimiter} cat\n")
    assert open_text_table(path).read(["label"])["label"].to_pylist() == [" cat"]
