"""The file of predictions: what is read is what was written, and nothing else is read."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pets_core.errors import PetsError
from pets_core.evaluation import predictions as module
from pets_core.evaluation.predictions import log_softmax, read_predictions, write_predictions


@pytest.mark.parametrize("num_rows", [0, 1, 10, 11])
def test_what_is_read_is_what_was_written(draw, write, num_rows, monkeypatch):
    monkeypatch.setattr(module, "_ROWS", 5)
    drawn = draw(num_rows, 4)
    found = read_predictions(write(drawn))
    assert found.info == drawn.info
    assert found.ids == drawn.ids
    np.testing.assert_array_equal(found.targets, drawn.targets)
    np.testing.assert_allclose(found.probabilities, drawn.probabilities, rtol=1e-5)


def test_people_read_names_and_figures(draw, write):
    drawn = draw(50, 4)
    table = pq.read_table(write(drawn)).to_pandas()
    assert list(table.columns) == [
        "id", "actual", "predicted", "probability", "loss", "probabilities"
    ]  # fmt: skip
    names = np.array(drawn.names)
    assert table.actual.tolist() == names[drawn.targets].tolist()
    assert table.predicted.tolist() == names[drawn.predicted].tolist()
    np.testing.assert_allclose(table.probability, drawn.probabilities.max(1), rtol=1e-5)
    own = drawn.probabilities[np.arange(50), drawn.targets]
    np.testing.assert_allclose(table.loss, -np.log(own), rtol=1e-4)


def test_embeddings_are_stored_where_asked_for(draw, tmp_path):
    drawn = draw(6, 3)
    features = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
    url = str(tmp_path / "p.parquet")
    logits = np.log(drawn.probabilities)
    write_predictions(url, drawn.info, drawn.ids, drawn.targets, logits, features)
    stored = np.stack(pq.read_table(url)["embedding"].to_pylist())
    np.testing.assert_array_equal(stored, features)
    assert len(read_predictions(url)) == 6


def test_large_logits_stay_finite():
    logs = log_softmax(np.array([[1e4, 0.0], [0.0, -1e4]], np.float32))
    assert logs.tolist() == [[0.0, -1e4], [0.0, -1e4]]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.5, 2.0])
def test_what_is_no_probability_is_refused(draw, write, value):
    drawn = draw(20, 3)
    url = write(drawn)
    table = pq.read_table(url)
    values = table["probabilities"].to_pylist()
    values[7][1] = values[9][0] = value
    column = pa.array(values, table.schema.field("probabilities").type)
    place = table.schema.get_field_index("probabilities")
    pq.write_table(table.set_column(place, table.schema.field(place), column), url)
    with pytest.raises(PetsError, match=r"of 2 of 20 photos are not finite.*photo-7, photo-9"):
        read_predictions(url)


def test_a_file_of_something_else_is_refused(tmp_path, draw, write):
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"id": ["a"]}), other)
    with pytest.raises(PetsError, match=r"no metadata 'pets' with the classes"):
        read_predictions(str(other))
    (tmp_path / "text.parquet").write_text("a,b")
    with pytest.raises(PetsError, match=r"no file of predictions"):
        read_predictions(str(tmp_path / "text.parquet"))
    with pytest.raises(PetsError, match=r"does not exist"):
        read_predictions(str(tmp_path / "nothing.parquet"))


def test_a_class_that_the_file_does_not_list_is_refused(draw, write):
    url = write(draw(5, 3))
    table = pq.read_table(url)
    actual = pa.array(["class-0", "class-1", "yeti", "class-0", "class-0"])
    pq.write_table(table.set_column(1, table.schema.field("actual"), actual), url)
    with pytest.raises(PetsError, match=r"'yeti' is actual, but not among its 3 classes"):
        read_predictions(url)
