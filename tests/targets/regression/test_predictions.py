"""Prediction files of numbers: round trip and validation."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pets_core.errors import PetsError
from pets_core.evaluation import predictions as module
from pets_core.evaluation.predictions import Predictions, read_predictions
from pets_core.targets.registry import get_target


def read(url: str, kind: str = "numbers") -> Predictions:
    return read_predictions(url, get_target(kind))


@pytest.mark.parametrize("num_rows", [1, 10, 11])
@pytest.mark.parametrize("names", [["age"], [f"n{i}" for i in range(70)]], ids=["one", "many"])
def test_round_trip_preserves_predictions(draw_kind, write, num_rows, names, monkeypatch):
    monkeypatch.setattr(module, "_ROWS", 5)
    drawn = draw_kind("numbers", num_rows, names=names)
    found = read(write(drawn))
    assert (found.info, found.ids, len(found)) == (drawn.info, drawn.ids, num_rows)
    np.testing.assert_array_equal(found.targets, drawn.targets)
    np.testing.assert_array_equal(found.outputs, drawn.outputs)


def test_columns_are_fixed_size_lists(draw_kind, write):
    schema = pq.read_schema(write(draw_kind("box", 3)))
    assert schema.names == ["id", "actual", "predicted"]
    assert schema.field("actual").type == schema.field("predicted").type
    assert schema.field("actual").type == pa.list_(pa.float32(), 4)


@pytest.mark.parametrize(
    ("kind", "names", "text"),
    [
        ("points", ["x", "y", "z"], "an x and a y each, got 3 numbers"),
        ("box", ["x", "y"], "a box needs 4 numbers, got 2"),
    ],
)
def test_incomplete_coordinates_are_refused(draw_kind, write, kind, names, text):
    drawn = draw_kind(kind, 3, names=names)
    with pytest.raises(PetsError, match=text):
        write(drawn)
    # Reading such a file fails as well.
    url = with_metadata(write(draw_kind("numbers", 3, names=names)), targets=kind)
    with pytest.raises(PetsError, match=text):
        read(url, kind)


def test_metadata_without_numbers_is_refused(draw_kind, write):
    url = with_metadata(write(draw_kind("numbers", 3)), numbers=[])
    with pytest.raises(PetsError, match="its metadata has no outputs: predict again"):
        read(url)


def test_ids_and_rows_must_have_equal_length(draw_kind, write):
    drawn = draw_kind("numbers", 3)
    drawn.ids.append("one more")
    with pytest.raises(AssertionError, match="outputs must be"):
        write(drawn)


def test_other_files_are_refused(tmp_path, draw_kind, write):
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"id": ["a"]}), other)
    with pytest.raises(PetsError, match=r"other.parquet: .*no metadata 'pets'.*use the"):
        read(str(other))
    (tmp_path / "text.parquet").write_text("a,b")
    with pytest.raises(PetsError, match=r"text.parquet: not a predictions file"):
        read(str(tmp_path / "text.parquet"))
    with pytest.raises(PetsError, match=r"does not exist"):
        read(str(tmp_path / "nothing.parquet"))
    with pytest.raises(PetsError, match=r"of targets = points, not of targets = numbers"):
        read(write(draw_kind("points")))


def with_metadata(url: str, **fields) -> str:
    """Replace metadata fields of a file."""
    table = pq.read_table(url)
    metadata = json.loads(table.schema.metadata[b"pets"]) | fields
    pq.write_table(table.replace_schema_metadata({b"pets": json.dumps(metadata)}), url)
    return url


def changed(url: str, name: str, values, kind=None) -> str:
    """Replace the values of a column."""
    table = pq.read_table(url)
    index = table.schema.get_field_index(name)
    column = pa.array(values, kind or table.schema.field(name).type)
    pq.write_table(table.set_column(index, pa.field(name, column.type), column), url)
    return url


def test_missing_or_mistyped_columns_are_refused(draw_kind, write):
    url = write(draw_kind("numbers", 3))
    with pytest.raises(PetsError, match=r"of 2 outputs: predicted must be .*not string"):
        read(changed(url, "predicted", ["a", "b", "c"], pa.string()))
    pq.write_table(pq.read_table(url).drop_columns(["predicted"]), url)
    with pytest.raises(PetsError, match=r"of 2 outputs: predicted must be .*no such column"):
        read(url)


def test_duplicate_ids_and_empty_files_are_refused(draw_kind, write):
    with pytest.raises(PetsError, match=r"1 duplicate samples: predict again"):
        read(changed(write(draw_kind("numbers", 3)), "id", ["a", "b", "a"]))
    with pytest.raises(PetsError, match=r"no samples: evaluate a split that has samples"):
        read(write(draw_kind("numbers", 0)))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), None])
@pytest.mark.parametrize(
    ("column", "remedy"), [("actual", "ingest again"), ("predicted", r"train\.base_lr")]
)
def test_nonfinite_numbers_are_refused(draw_kind, write, column, remedy, value):
    values = [[1.0, 2.0], [3.0, value], [4.0, 5.0]]
    url = changed(write(draw_kind("numbers", 3)), column, values)
    text = rf"1 of 3 samples have {column} numbers that are not finite: photo-1\. .*{remedy}"
    with pytest.raises(PetsError, match=text):
        read(url)


@pytest.mark.parametrize("column", ["actual", "predicted"])
@pytest.mark.parametrize("missing", [[1], [0, 2]])
def test_photos_without_numbers_are_refused(draw_kind, write, column, missing):
    values = [None if row in missing else [1.0, 2.0] for row in range(3)]
    url = changed(write(draw_kind("numbers", 3)), column, values)
    with pytest.raises(PetsError, match=rf"{len(missing)} samples have no {column}: predict again"):
        read(url)


@pytest.mark.parametrize("kind", ["numbers", "points", "box"])
def test_file_of_version_1_is_read(tmp_path, kind):
    names = {"box": ["xmin", "ymin", "xmax", "ymax"]}.get(kind, ["a", "b"])
    metadata = {
        "format_version": 1, "split": "valid", "model_url": "store/runs/r/model",
        "backbone": "resnet34", "image_size": 64, "dataset_url": "store/datasets/pets/f",
        "dataset_name": "pets", "dataset_fingerprint": "f", "tta_views": 0,
        "photos_per_second": 9.5, "targets": kind,
        "numbers": [{"name": name, "unit": "kg", "mean": 1.5, "std": 0.5, "low": 0.0, "high": 3.0}
                    for name in names],
    }  # fmt: skip
    actual = np.arange(2 * len(names), dtype=np.float32).reshape(2, -1)
    lists = pa.list_(pa.float32(), len(names))
    columns = {
        "id": ["a", "b"],
        "actual": pa.array(actual.tolist(), lists),
        "predicted": pa.array((actual + 0.5).tolist(), lists),
    }
    url = str(tmp_path / "predictions.parquet")
    pq.write_table(pa.table(columns, metadata={"pets": json.dumps(metadata)}), url)
    found = read(url, kind)
    assert found.ids == ["a", "b"]
    assert [(n.name, n.unit, n.mean) for n in found.info.numbers] == [(n, "kg", 1.5) for n in names]
    np.testing.assert_array_equal(found.targets, actual)
    np.testing.assert_array_equal(found.outputs, actual + 0.5)


def test_damaged_bytes_never_change_the_predictions(draw_kind, write):
    url = write(draw_kind("box", 200))
    data, intact = Path(url).read_bytes(), read(url, "box")
    num_detected = 0
    for index in range(0, len(data), 61):
        Path(url).write_bytes(data[:index] + bytes([data[index] ^ 0xFF]) + data[index + 1 :])
        try:
            found = read(url, "box")
        except PetsError:
            num_detected += 1
            continue
        np.testing.assert_array_equal(found.targets, intact.targets)
        np.testing.assert_array_equal(found.outputs, intact.outputs)
        assert found.ids == intact.ids
    assert num_detected > 20
