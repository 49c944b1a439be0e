"""The file of predictions of numbers: what is read is what was written, and nothing else is."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pydantic
import pytest

from pets_core.errors import PetsError
from pets_core.evaluation import predictions as module
from pets_core.evaluation.predictions import read_info
from pets_core.numbers.predictions import read_number_predictions


@pytest.mark.parametrize("num_rows", [1, 10, 11])
@pytest.mark.parametrize("names", [["age"], [f"n{i}" for i in range(70)]], ids=["one", "many"])
def test_what_is_read_is_what_was_written(draw, write, num_rows, names, monkeypatch):
    monkeypatch.setattr(module, "_ROWS", 5)
    drawn = draw("numbers", num_rows, names=names)
    found = read_number_predictions(write(drawn))
    assert (found.info, found.ids, len(found)) == (drawn.info, drawn.ids, num_rows)
    np.testing.assert_array_equal(found.targets, drawn.targets)
    np.testing.assert_array_equal(found.predicted, drawn.predicted)


def test_the_columns_are_lists_of_as_many_as_there_are_numbers(draw, write):
    schema = pq.read_schema(write(draw("box", 3)))
    assert schema.names == ["id", "actual", "predicted"]
    assert schema.field("actual").type == schema.field("predicted").type
    assert schema.field("actual").type == pa.list_(pa.float32(), 4)


@pytest.mark.parametrize(
    ("targets", "names", "words"),
    [
        ("numbers", [], "numbers is empty"),
        ("points", ["x", "y", "z"], "an x and a y each, and there are 3 numbers"),
        ("box", ["x", "y"], "a box has 4 numbers, and there are 2"),
    ],
)
def test_places_are_whole(draw, targets, names, words):
    with pytest.raises(pydantic.ValidationError, match=words):
        draw(targets, 3, names=names)


def test_a_row_for_each_photo_is_written(draw, write):
    drawn = draw("numbers", 3)
    drawn.ids.append("one more")
    with pytest.raises(AssertionError, match="a row a photo"):
        write(drawn)


def test_a_file_of_something_else_is_refused(tmp_path, draw, write):
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"id": ["a"]}), other)
    with pytest.raises(PetsError, match=r"other.parquet: .*no metadata 'pets'.*give the"):
        read_number_predictions(str(other))
    (tmp_path / "text.parquet").write_text("a,b")
    with pytest.raises(PetsError, match=r"text.parquet: no file of predictions"):
        read_number_predictions(str(tmp_path / "text.parquet"))
    with pytest.raises(PetsError, match=r"does not exist"):
        read_number_predictions(str(tmp_path / "nothing.parquet"))
    with pytest.raises(PetsError, match=r"of another version or kind of model"):
        read_info(write(draw()))


def changed(url: str, name: str, values, kind=None) -> str:
    """The file with other values in a column."""
    table = pq.read_table(url)
    place = table.schema.get_field_index(name)
    column = pa.array(values, kind or table.schema.field(name).type)
    pq.write_table(table.set_column(place, pa.field(name, column.type), column), url)
    return url


def test_columns_that_lack_or_are_of_another_kind_are_refused(draw, write):
    url = write(draw("numbers", 3))
    with pytest.raises(PetsError, match=r"of 2 numbers: predicted is to be .*not string"):
        read_number_predictions(changed(url, "predicted", ["a", "b", "c"], pa.string()))
    pq.write_table(pq.read_table(url).drop_columns(["predicted"]), url)
    with pytest.raises(PetsError, match=r"of 2 numbers: predicted is to be .*no such column"):
        read_number_predictions(url)


def test_photos_that_are_there_twice_or_not_at_all_are_refused(draw, write):
    with pytest.raises(PetsError, match=r"1 photos are in it twice: predict anew"):
        read_number_predictions(changed(write(draw("numbers", 3)), "id", ["a", "b", "a"]))
    with pytest.raises(PetsError, match=r"holds no photo; judge a split that has some"):
        read_number_predictions(write(draw("numbers", 0)))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), None])
@pytest.mark.parametrize(
    ("column", "remedy"), [("actual", "ingest again"), ("predicted", r"train\.base_lr")]
)
def test_what_is_not_finite_is_refused(draw, write, column, remedy, value):
    values = [[1.0, 2.0], [3.0, value], [4.0, 5.0]]
    url = changed(write(draw("numbers", 3)), column, values)
    words = rf"the {column} numbers of 1 of 3 photos are not finite: photo-1; .*{remedy}"
    with pytest.raises(PetsError, match=words):
        read_number_predictions(url)


def test_photos_without_numbers_are_refused(draw, write):
    url = changed(write(draw("numbers", 3)), "actual", [[1.0, 2.0], None, [4.0, 5.0]])
    with pytest.raises(PetsError, match=r"1 photos have no actual: predict anew"):
        read_number_predictions(url)


def test_no_damage_goes_unseen(draw, write):
    url = write(draw("box", 200))
    data, intact = Path(url).read_bytes(), read_number_predictions(url)
    seen = 0
    for place in range(0, len(data), 61):
        Path(url).write_bytes(data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :])
        try:
            found = read_number_predictions(url)
        except PetsError:
            seen += 1
            continue
        np.testing.assert_array_equal(found.targets, intact.targets)
        np.testing.assert_array_equal(found.predicted, intact.predicted)
        assert found.ids == intact.ids
    assert seen > 20
