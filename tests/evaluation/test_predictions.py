"""Prediction files of classes: round trip and validation."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pets_core.errors import PetsError
from pets_core.evaluation import predictions as module
from pets_core.evaluation.predictions import (
    read_info,
    read_predictions,
    write_predictions,
)
from pets_core.records.dataset import ClassInfo
from pets_core.targets.classes.predictions import ClassPredictions
from pets_core.targets.classes.target import CLASSES
from pets_core.targets.registry import get_target


def read_classes(url: str) -> ClassPredictions:
    return ClassPredictions.of(read_predictions(url, CLASSES))


@pytest.mark.parametrize("num_rows", [1, 10, 11])
def test_round_trip_preserves_predictions(draw_classes, write, num_rows, monkeypatch):
    monkeypatch.setattr(module, "_ROWS", 5)
    drawn = draw_classes(num_rows, 4)
    found = read_classes(write(drawn))
    assert found.info == drawn.info
    assert found.ids == drawn.ids
    np.testing.assert_array_equal(found.targets, drawn.targets)
    np.testing.assert_allclose(found.outputs, drawn.outputs, rtol=1e-5)
    np.testing.assert_allclose(found.losses, drawn.losses, rtol=1e-4)


def test_losses_are_finite_where_probabilities_are_0(draw_classes, tmp_path):
    drawn = draw_classes(2, 2)
    url = str(tmp_path / "p.parquet")
    outputs = np.array([[1.0, 0.0], [0.5, 0.5]], np.float32)
    write_predictions(url, CLASSES, drawn.info, drawn.ids, np.array([1, 1]), outputs)
    found, table = read_classes(url), pq.read_table(url).to_pandas()
    max_loss = -np.log(np.finfo(np.float32).tiny)
    assert found.losses.tolist() == table.loss.tolist() == pytest.approx([max_loss, np.log(2)])
    assert [found.names[i] for i in found.predicted] == table.predicted.tolist()


def test_columns_of_class_predictions(draw_classes, write):
    drawn = draw_classes(50, 4)
    table = pq.read_table(write(drawn)).to_pandas()
    assert list(table.columns) == [
        "id", "actual", "predicted", "probability", "loss", "probabilities"
    ]  # fmt: skip
    names = np.array(drawn.names)
    assert table.actual.tolist() == names[drawn.targets].tolist()
    assert table.predicted.tolist() == names[drawn.predicted].tolist()
    np.testing.assert_allclose(table.probability, drawn.outputs.max(1), rtol=1e-5)
    own = drawn.outputs[np.arange(50), drawn.targets]
    np.testing.assert_allclose(table.loss, -np.log(own), rtol=1e-4)


def test_embeddings_are_stored_with_the_predictions(draw_classes, tmp_path):
    drawn = draw_classes(6, 3)
    features = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
    url = str(tmp_path / "p.parquet")
    write_predictions(url, CLASSES, drawn.info, drawn.ids, drawn.targets, drawn.outputs, features)
    stored = np.stack(pq.read_table(url)["embedding"].to_pylist())
    np.testing.assert_array_equal(stored, features)
    assert len(read_classes(url)) == 6


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.5, 2.0])
def test_invalid_probabilities_are_refused(draw_classes, write, value):
    drawn = draw_classes(20, 3)
    url = write(drawn)
    table = pq.read_table(url)
    values = table["probabilities"].to_pylist()
    values[7][1] = values[9][0] = value
    column = pa.array(values, table.schema.field("probabilities").type)
    index = table.schema.get_field_index("probabilities")
    pq.write_table(table.set_column(index, table.schema.field(index), column), url)
    with pytest.raises(
        PetsError, match=r"2 of 20 samples have probabilities that are not finite.*photo-7, photo-9"
    ):
        read_classes(url)


def test_other_files_are_refused(tmp_path, draw_classes, write):
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"id": ["a"]}), other)
    with pytest.raises(
        PetsError, match=r"no metadata 'pets'; use the predictions.parquet of an evaluation"
    ):
        read_classes(str(other))
    (tmp_path / "text.parquet").write_text("a,b")
    with pytest.raises(PetsError, match=r"not a predictions file"):
        read_classes(str(tmp_path / "text.parquet"))
    with pytest.raises(PetsError, match=r"does not exist"):
        read_classes(str(tmp_path / "nothing.parquet"))


def changed(url: str, name: str, values, kind=None) -> str:
    """Replace the values of a column."""
    table = pq.read_table(url)
    index = table.schema.get_field_index(name)
    column = pa.array(values, kind or table.schema.field(name).type)
    pq.write_table(table.set_column(index, pa.field(name, column.type), column), url)
    return url


@pytest.mark.parametrize("column", ["id", "actual", "loss", "probabilities"])
def test_file_without_a_column_is_refused(draw_classes, write, column):
    url = write(draw_classes(5, 3))
    pq.write_table(pq.read_table(url).drop_columns([column]), url)
    with pytest.raises(PetsError, match=f"{column} must be .*no such column"):
        read_classes(url)


def test_mistyped_or_nonfinite_columns_are_refused(draw_classes, write):
    url = changed(write(draw_classes(3, 3)), "probabilities", ["a", "b", "c"], pa.string())
    with pytest.raises(PetsError, match=r"probabilities must be fixed_size_list.*not string"):
        read_classes(url)
    url = changed(write(draw_classes(3, 3)), "loss", [float("nan"), 1.0, 1.0])
    with pytest.raises(
        PetsError, match=r"1 of 3 samples have probabilities that are not finite.*photo-0"
    ):
        read_classes(url)


def test_photos_without_probabilities_are_refused(draw_classes, write):
    url = write(draw_classes(3, 3))
    third = [1 / 3] * 3
    with pytest.raises(PetsError, match=r"1 samples have no probabilities: predict again"):
        read_classes(changed(url, "probabilities", [third, None, third]))


def test_duplicate_ids_and_empty_files_are_refused(draw_classes, write):
    with pytest.raises(PetsError, match=r"1 duplicate samples"):
        read_classes(changed(write(draw_classes(3, 3)), "id", ["a", "b", "a"]))
    with pytest.raises(PetsError, match=r"no samples: evaluate"):
        read_classes(write(draw_classes(0, 3)))


def test_damaged_bytes_never_change_the_predictions(draw_classes, write):
    url = write(draw_classes(400, 5))
    data, intact = Path(url).read_bytes(), read_classes(url)
    for index in range(0, len(data), 97):
        Path(url).write_bytes(data[:index] + bytes([data[index] ^ 0xFF]) + data[index + 1 :])
        try:
            found = read_classes(url)
        except PetsError:
            continue
        np.testing.assert_array_equal(found.outputs, intact.outputs)
        np.testing.assert_array_equal(found.losses, intact.losses)
        assert (found.ids, found.targets.tolist()) == (intact.ids, intact.targets.tolist())


def test_class_outside_the_vocabulary_is_refused(draw_classes, write):
    url = write(draw_classes(5, 3))
    table = pq.read_table(url)
    actual = pa.array(["class-0", "class-1", "yeti", "class-0", "class-0"])
    pq.write_table(table.set_column(1, table.schema.field("actual"), actual), url)
    with pytest.raises(PetsError, match=r"actual class 'yeti' is not among its 3 classes"):
        read_classes(url)


def with_info(url: str, info: str) -> str:
    """Replace the metadata of a file."""
    table = pq.read_table(url)
    pq.write_table(table.replace_schema_metadata({b"pets": info.encode()}), url)
    return url


def test_predictions_of_another_kind_are_refused(draw_classes, write):
    url = write(draw_classes(5, 3))
    message = r"predictions.parquet: predictions of targets = class, not of targets = tags"
    with pytest.raises(PetsError, match=message):
        read_predictions(url, get_target("tags"))


def test_metadata_of_a_newer_version_is_refused(draw_classes, write):
    drawn = draw_classes(5, 3)
    info = drawn.info.model_dump() | {"format_version": 4}
    url = with_info(write(drawn), json.dumps(info))
    with pytest.raises(PetsError, match=r"the metadata is damaged or of another version"):
        read_info(url)


def test_metadata_without_outputs_is_refused(draw_classes, write):
    drawn = draw_classes(5, 3)
    info = drawn.info.model_copy(update={"vocabulary": ()})
    url = with_info(write(drawn), info.model_dump_json())
    with pytest.raises(PetsError, match=r"its metadata has no outputs: predict again"):
        read_classes(url)


def write_version_1(path: Path) -> str:
    """Write a file of version 1, before all kinds shared one format."""
    info = {
        "format_version": 1, "split": "test", "model_url": "a/model", "backbone": "resnet34",
        "image_size": 224, "dataset_url": "nowhere/pets/f", "dataset_name": "pets",
        "dataset_fingerprint": "f", "tta_views": 0, "photos_per_second": 12.5,
        "classes": [{"name": "pug", "species": "dog"}, {"name": "Sphynx", "species": "cat"}],
    }  # fmt: skip
    columns = {
        "id": pa.array(["a", "b", "c"]),
        "actual": pa.array(["pug", "Sphynx", "Sphynx"]),
        "predicted": pa.array(["pug", "pug", "Sphynx"]),
        "probability": pa.array([0.75, 0.5, 0.875], pa.float32()),
        "loss": pa.array(-np.log([0.75, 0.5, 0.875]), pa.float32()),
        "probabilities": pa.array(
            [[0.75, 0.25], [0.5, 0.5], [0.125, 0.875]], pa.list_(pa.float32(), 2)
        ),
    }
    metadata = {b"pets": json.dumps(info).encode()}
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)
    return str(path)


def test_file_of_version_1_is_read(tmp_path):
    url = write_version_1(tmp_path / "old.parquet")
    info = read_info(url)
    assert (info.targets, info.split, info.photos_per_second) == ("class", "test", 12.5)
    assert info.vocabulary == (
        ClassInfo(name="pug", species="dog"), ClassInfo(name="Sphynx", species="cat")
    )  # fmt: skip
    found = read_classes(url)
    assert found.ids == ["a", "b", "c"]
    assert found.targets.tolist() == [0, 1, 1]
    assert found.predicted.tolist() == [0, 0, 1]
    assert found.outputs.tolist() == [[0.75, 0.25], [0.5, 0.5], [0.125, 0.875]]
    assert found.losses.tolist() == pytest.approx(-np.log([0.75, 0.5, 0.875]))
