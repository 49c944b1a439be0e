"""Drawing of coordinates on photos, and the gallery of the worst photos."""

import io

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pets_core.data.dataset import write_table
from pets_core.evaluation.gallery import Picture, read_gallery
from pets_core.targets.coordinates.drawing import (
    ACTUAL,
    PREDICTED,
    draw_coordinates,
    read_photo_sizes,
)
from pets_core.targets.coordinates.metrics import box_iou, distances, pixel_distances

SIDE = 224
COORDINATE = st.floats(-1, 1, width=32)
ANYWHERE = st.floats(allow_nan=False, allow_infinity=False, width=32)
GREY = Image.new("RGB", (SIDE, SIDE), (90, 90, 90))


def drawn(kind: str, actual, predicted, photo: Image.Image = GREY) -> np.ndarray:
    """Return the pixels of a photo with drawn coordinates, (height, width, 3)."""
    image = draw_coordinates(photo, kind, np.array(actual, "f4"), np.array(predicted, "f4"))
    return np.asarray(image).astype(int)


def positions_of(pixels: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Return x and y of the pixels of a colour, (n, 2)."""
    rows, columns = np.nonzero((pixels == colour).all(2))
    return np.stack([columns, rows], axis=1)


def pixel(value: float) -> float:
    return (value + 1) / 2 * (SIDE - 1)


@given(COORDINATE, COORDINATE, COORDINATE, COORDINATE)
def test_points_are_drawn_at_their_coordinates(x, y, predicted_x, predicted_y):
    pixels = drawn("points", [x, y], [predicted_x, predicted_y])
    cross = positions_of(pixels, PREDICTED)
    off = np.abs(cross - [pixel(predicted_x), pixel(predicted_y)]).max(1)
    assert off.min() <= 2, "the cross is centred at its point"
    circle = positions_of(pixels, ACTUAL)
    away = np.linalg.norm(circle - [pixel(x), pixel(y)], axis=1)
    # The cross may cover part of the circle.
    assert len(away) > 4
    assert away.min() > 2
    assert away.max() < 8


@given(COORDINATE, COORDINATE, COORDINATE, COORDINATE)
def test_line_connects_the_actual_and_the_predicted_point(x, y, predicted_x, predicted_y):
    line = positions_of(drawn("points", [x, y], [predicted_x, predicted_y]), PREDICTED)
    ends = np.array([[pixel(x), pixel(y)], [pixel(predicted_x), pixel(predicted_y)]])
    assert (line >= ends.min(0) - 6).all()
    assert (line <= ends.max(0) + 6).all()


@given(st.tuples(*[COORDINATE] * 4), st.tuples(*[COORDINATE] * 4))
def test_boxes_are_drawn_at_their_coordinates(actual, predicted):
    """Corners may be in any order."""
    pixels = drawn("box", actual, predicted)
    for numbers, colour in ((actual, ACTUAL), (predicted, PREDICTED)):
        found = positions_of(pixels, colour)
        if colour == ACTUAL and not len(found):
            continue  # covered by the predicted box
        corners = np.array([pixel(value) for value in numbers]).reshape(2, 2)
        low, high = corners.min(0), corners.max(0)
        assert (found >= low - 2.5).all()
        assert (found <= high + 2.5).all()
        near = np.minimum(np.abs(found - low), np.abs(found - high)).min(1)
        assert (near <= 2.5).all(), "only the edges are drawn"
    assert positions_of(pixels, PREDICTED).min(0) == pytest.approx(low, abs=2.5)
    assert positions_of(pixels, PREDICTED).max(0) == pytest.approx(high, abs=2.5)


@given(st.sampled_from(["points", "box"]), *[st.tuples(*[ANYWHERE] * 4)] * 2)
def test_coordinates_outside_the_photo_are_drawn_at_its_edge(kind, actual, predicted):
    pixels = drawn(kind, actual, predicted)
    assert pixels.shape == (SIDE, SIDE, 3)
    assert len(positions_of(pixels, PREDICTED)) > 0


def test_points_beyond_an_edge_are_drawn_at_that_edge():
    for value, axis, at in ((-9, 0, 0), (9, 0, SIDE - 1), (-9, 1, 0), (9, 1, SIDE - 1)):
        numbers = [0.0, 0.0]
        numbers[axis] = value
        found = positions_of(drawn("points", numbers, numbers), PREDICTED)
        assert np.abs(found[:, axis] - at).max() <= 6


@pytest.mark.parametrize("colour", ["white", "black", ACTUAL, PREDICTED])
def test_colours_are_visible_on_any_photo(colour):
    plain = Image.new("RGB", (SIDE, SIDE), colour)
    shown = {
        "points": ([0, 0], [0.5, 0.5]),
        "box": ([-0.5, -0.5, 0.5, 0.5], [-0.4, -0.4, 0.6, 0.6]),
    }
    for kind, (actual, predicted) in shown.items():
        pixels = drawn(kind, actual, predicted, plain)
        for own in (ACTUAL, PREDICTED, (0, 0, 0)):
            assert len(positions_of(pixels, own)) > 20


@pytest.mark.parametrize(("size", "shown"), [((24, 16), (224, 149)), ((300, 900), (75, 224))])
def test_drawn_photos_have_a_fixed_longest_side(size, shown):
    image = draw_coordinates(Image.new("L", size), "points", np.zeros(2, "f4"), np.ones(2, "f4"))
    assert image.size == shown


@pytest.fixture
def worst_of(evaluated):
    """Return a function that returns the gallery of the largest errors."""

    def worst(predictions) -> list[Picture]:
        return read_gallery(evaluated(predictions).file("gallery.parquet"))["worst-errors"]

    return worst


def test_worst_boxes_are_sorted_by_iou(draw_kind, worst_of):
    """Disjoint boxes are sorted by distance, farthest first."""
    predictions = draw_kind("box", 40, off=0.3)
    worst = worst_of(predictions)
    iou = box_iou(predictions.targets, predictions.outputs)
    off = distances(predictions.targets, predictions.outputs).mean(1)
    assert (iou == 0).sum() > 1
    order = np.lexsort([-off, iou])[:16]
    assert [picture.photo_id for picture in worst] == [predictions.ids[row] for row in order]
    assert [picture.detail for picture in worst] == [f"IoU {iou[row]:.2f}" for row in order]
    numbers = predictions.targets[order[0]]
    assert worst[0].actual == "; ".join(f"{number:.2f}" for number in numbers)
    assert {picture.jpeg for picture in worst} == {None}, "the data set is unavailable"


def test_worst_points_are_sorted_by_distance(draw_kind, worst_of):
    predictions = draw_kind("points", 40, off=0.3)
    worst = worst_of(predictions)
    off = np.hypot(*(predictions.outputs.astype("f8") - predictions.targets).T) / 2
    order = np.argsort(-off)[:16]
    assert [picture.photo_id for picture in worst] == [predictions.ids[row] for row in order]
    assert worst[0].detail == f"{off.max():.1%} of a side"


def test_photo_sizes_are_in_the_order_of_the_ids(stored, draw_stored, worst_of, caplog):
    predictions = draw_stored("points")
    sizes = read_photo_sizes(stored.url, predictions.ids)
    assert sizes.tolist() == [[24, 16]] * 12
    worst = worst_of(predictions)[0]
    row = predictions.ids.index(worst.photo_id)
    pixels = pixel_distances(predictions.targets, predictions.outputs, sizes)
    assert worst.detail == f"{pixels[row].mean():.3g} pixels"
    assert read_photo_sizes(stored.url, ["yeti", *predictions.ids]) is None
    assert "1 of 13 photos are missing in the data set" in caplog.text
    assert read_photo_sizes("nowhere/pets/f", predictions.ids) is None


def test_each_photo_has_its_own_size(tmp_path):
    sizes = {"id": ["b", "a", "c"], "width": [3, 1, 5], "height": [4, 2, 6]}
    write_table(str(tmp_path / "photos.parquet"), pa.table(sizes))
    assert read_photo_sizes(str(tmp_path), ["a", "b"]).tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("kind", "is_drawn"), [("numbers", False), ("points", True), ("box", True)]
)
def test_worst_photos_are_stored_in_the_gallery(draw_stored, worst_of, kind, is_drawn):
    worst = worst_of(draw_stored(kind, off=0.3))
    assert len(worst) == 12
    for picture in worst:
        image = Image.open(io.BytesIO(picture.jpeg))
        assert max(image.size) == (SIDE if is_drawn else 24)


def test_actual_point_is_drawn_on_the_matching_photo(draw_stored, worst_of):
    """JPEG changes colours less than the green of the ring differs from the photo."""
    predictions = draw_stored("points", off=0.0)
    predictions.targets[:] = predictions.outputs[:] = 0.0
    predictions.targets[3] = [-0.8, -0.8]
    shown = worst_of(predictions)[0]
    assert shown.photo_id == predictions.ids[3]
    assert_ring_at(shown.jpeg, 0.1)


def test_label_issue_photos_show_validation_coordinates(draw_stored, evaluated):
    """A photo in both files is drawn with the predictions of each file."""
    predictions, validation = (draw_stored("points", off=0.0) for _ in range(2))
    for drawn in (predictions, validation):
        drawn.targets[:] = drawn.outputs[:] = 0.0
    validation.outputs[:] += np.random.default_rng(0).normal(0, 0.01, validation.outputs.shape)
    predictions.targets[3], validation.targets[3] = [-0.8, -0.8], [0.8, 0.8]
    gallery = read_gallery(evaluated(predictions, validation).file("gallery.parquet"))
    assert_ring_at(gallery["worst-errors"][0].jpeg, 0.1)
    (issue,) = gallery["label-issues"]
    assert issue.photo_id == predictions.ids[3]
    assert_ring_at(issue.jpeg, 0.9)


def assert_ring_at(jpeg: bytes, share: float) -> None:
    """Check that the actual point is at a share of both sides."""
    pixels = np.asarray(Image.open(io.BytesIO(jpeg))).astype(int)
    height, width = pixels.shape[:2]
    x, y = round(share * (width - 1)), round(share * (height - 1))
    ring = pixels[y - 6 : y + 7, x - 6 : x + 7].reshape(-1, 3)
    assert (np.abs(ring - ACTUAL).max(1) < 60).sum() > 15
