"""The file of predictions of tags: what is read is what was written, and nothing else is."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pets_core.errors import PetsError
from pets_core.evaluation import predictions as module
from pets_core.evaluation.predictions import read_info
from pets_core.tags.predictions import binary_cross_entropy, read_tag_predictions


@pytest.mark.parametrize("num_rows", [1, 10, 11])
@pytest.mark.parametrize("num_tags", [1, 4])
def test_what_is_read_is_what_was_written(draw, write, num_rows, num_tags, monkeypatch):
    monkeypatch.setattr(module, "_ROWS", 5)
    drawn = draw(num_rows, num_tags)
    found = read_tag_predictions(write(drawn))
    assert (found.info, found.ids, len(found)) == (drawn.info, drawn.ids, num_rows)
    np.testing.assert_array_equal(found.targets, drawn.targets)
    np.testing.assert_array_equal(found.probabilities, drawn.probabilities)
    np.testing.assert_allclose(found.losses, drawn.losses)


def test_tags_are_there_by_name(draw, write):
    drawn = draw(6)
    rows = pq.read_table(write(drawn)).to_pylist()
    for row, flags in zip(rows, drawn.targets, strict=True):
        assert row["actual"] == [drawn.info.tags[i] for i in np.flatnonzero(flags)]
    assert any(row["actual"] == [] for row in rows), "photos without a tag are among them"


def test_the_loss_is_worked_out_by_hand():
    losses = binary_cross_entropy(
        np.array([[True, False], [True, True]]), np.array([[0.5, 0.2], [1.0, 0.0]], np.float32)
    )
    assert losses[0] == pytest.approx(-(math.log(0.5) + math.log(0.8)) / 2, rel=1e-5)
    assert 7 < losses[1] < 9, "what was rounded to 0 does not cost without end"


@pytest.mark.parametrize("bad", [float("nan"), -0.1, 1.1])
def test_what_is_no_probability_is_refused(draw, write, bad):
    drawn = draw(5)
    drawn.probabilities[2, 1] = bad
    with pytest.raises(PetsError, match=r"1 of 5 photos are not finite, or not .*photo-2"):
        read_tag_predictions(write(drawn))


def test_a_tag_outside_the_vocabulary_is_refused(draw, write):
    url = write(draw(5))
    table = pq.read_table(url)
    actual = [["dgo"], *table["actual"].to_pylist()[1:]]
    place = table.schema.get_field_index("actual")
    pq.write_table(table.set_column(place, table.schema.field(place), [actual]), url)
    with pytest.raises(PetsError, match="'dgo' is actual, but not among its 5 tags"):
        read_tag_predictions(url)


def test_a_photo_twice_is_refused(draw, write):
    drawn = draw(4)
    with pytest.raises(PetsError, match="1 photos are in it twice"):
        read_tag_predictions(write(replace(drawn, ids=["a", "b", "a", "c"])))


def test_predictions_of_classes_are_no_tags(draw, write, tmp_path):
    url = write(draw(3))
    with pytest.raises(PetsError, match="another version or kind of model"):
        read_info(url)
    Path(url).write_bytes(b"nothing")
    with pytest.raises(PetsError, match="no file of predictions, or damaged"):
        read_tag_predictions(url)
