"""Prediction files of tags: round trip and validation."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pets_core.errors import PetsError
from pets_core.evaluation import predictions as module
from pets_core.evaluation.predictions import read_info, read_predictions
from pets_core.targets.classes.target import CLASSES
from pets_core.targets.tags.target import TAGS, binary_cross_entropy


@pytest.mark.parametrize("num_rows", [1, 10, 11])
@pytest.mark.parametrize("num_tags", [1, 4])
def test_round_trip_preserves_predictions(draw, write, num_rows, num_tags, monkeypatch):
    monkeypatch.setattr(module, "_ROWS", 5)
    drawn = draw(num_rows, num_tags)
    found = read_predictions(write(drawn), TAGS)
    assert (found.info, found.ids, len(found)) == (drawn.info, drawn.ids, num_rows)
    np.testing.assert_array_equal(found.targets, drawn.targets)
    np.testing.assert_array_equal(found.outputs, drawn.outputs)
    np.testing.assert_allclose(found.losses, drawn.losses)


def test_actual_tags_are_stored_by_name(draw, write):
    drawn = draw(6)
    rows = pq.read_table(write(drawn)).to_pylist()
    for row, flags in zip(rows, drawn.targets, strict=True):
        assert row["actual"] == [drawn.info.names[i] for i in np.flatnonzero(flags)]
    assert any(row["actual"] == [] for row in rows), "some photos have no tag"


def test_loss_computed_by_hand():
    losses = binary_cross_entropy(
        np.array([[True, False], [True, True]]), np.array([[0.5, 0.2], [1.0, 0.0]], np.float32)
    )
    assert losses[0] == pytest.approx(-(math.log(0.5) + math.log(0.8)) / 2, rel=1e-5)
    assert 7 < losses[1] < 9, "the loss of a probability of 0 is finite"


@pytest.mark.parametrize("bad", [float("nan"), -0.1, 1.1])
def test_invalid_probabilities_are_refused(draw, write, bad):
    drawn = draw(5)
    drawn.outputs[2, 1] = bad
    text = r"parquet: 1 of 5 samples have probabilities .* not from 0 to 1: photo-2\. Predict again"
    with pytest.raises(PetsError, match=text):
        read_predictions(write(drawn), TAGS)


def test_tag_outside_the_vocabulary_is_refused(draw, write):
    url = write(draw(5))
    table = pq.read_table(url)
    actual = [["dgo"], *table["actual"].to_pylist()[1:]]
    index = table.schema.get_field_index("actual")
    pq.write_table(table.set_column(index, table.schema.field(index), [actual]), url)
    with pytest.raises(PetsError, match="actual tag 'dgo' is not among its 5 tags"):
        read_predictions(url, TAGS)


def test_duplicate_ids_are_refused(draw, write):
    drawn = draw(4)
    with pytest.raises(PetsError, match="1 duplicate samples"):
        read_predictions(write(replace(drawn, ids=["a", "b", "a", "c"])), TAGS)


def test_error_names_the_first_three_samples(draw, write):
    drawn = draw(12)
    drawn.outputs[2:9, 1] = float("nan")
    with pytest.raises(PetsError, match=r"7 of 12 samples .*: photo-2, photo-3, photo-4\. Predict"):
        read_predictions(write(drawn), TAGS)


def test_predictions_of_tags_are_refused_as_classes(draw, write):
    url = write(draw(3))
    assert read_info(url).targets == "tags"
    with pytest.raises(PetsError, match="predictions of targets = tags, not of targets = class"):
        read_predictions(url, CLASSES)
    Path(url).write_bytes(b"nothing")
    with pytest.raises(PetsError, match="not a predictions file, or damaged"):
        read_predictions(url, TAGS)


def test_empty_vocabulary_is_refused(draw, write, tmp_path):
    url = write(draw(3))
    metadata = json.loads(pq.read_schema(url).metadata[b"pets"]) | {"vocabulary": []}
    table = pq.read_table(url).replace_schema_metadata({b"pets": json.dumps(metadata)})
    pq.write_table(table, url)
    with pytest.raises(PetsError, match="its metadata has no outputs: predict again"):
        read_predictions(url, TAGS)


def test_file_of_version_1_is_read(tmp_path):
    """Metadata of version 1 has only the names of the tags."""
    metadata = {
        "format_version": 1, "split": "test", "model_url": "store/runs/r/model",
        "backbone": "resnet34", "image_size": 64, "dataset_url": "store/datasets/pets/f",
        "dataset_name": "pets", "dataset_fingerprint": "f", "tta_views": 2,
        "photos_per_second": 9.5, "targets": "tags", "tags": ["dog", "cat", "sofa"],
    }  # fmt: skip
    table = pa.table(
        {
            "id": ["a", "b"],
            "actual": [["dog", "sofa"], []],
            "loss": pa.array([0.25, 0.5], pa.float32()),
            "probabilities": pa.array(
                [[0.75, 0.25, 0.5], [0.125, 0.25, 1]], pa.list_(pa.float32(), 3)
            ),
        },
        metadata={"pets": json.dumps(metadata)},
    )
    url = str(tmp_path / "predictions.parquet")
    pq.write_table(table, url)
    found = read_predictions(url, TAGS)
    assert found.info.names == ["dog", "cat", "sofa"]
    assert (found.info.targets, found.info.tta_views) == ("tags", 2)
    assert found.ids == ["a", "b"]
    assert found.targets.tolist() == [[True, False, True], [False, False, False]]
    assert found.outputs.tolist() == [[0.75, 0.25, 0.5], [0.125, 0.25, 1]]


def test_newer_version_is_refused(draw, write):
    url = write(draw(3))
    metadata = json.loads(pq.read_schema(url).metadata[b"pets"]) | {"format_version": 4}
    table = pq.read_table(url).replace_schema_metadata({b"pets": json.dumps(metadata)})
    pq.write_table(table, url)
    with pytest.raises(PetsError, match="metadata is damaged or of another version"):
        read_predictions(url, TAGS)
