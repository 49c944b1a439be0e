"""Which photos are shown, and that what is drawn on them lies where the numbers say."""

import io

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pets_core.data.dataset import write_table
from pets_core.numbers.gallery import (
    ACTUAL,
    PREDICTED,
    draw_places,
    photo_sizes,
    read_worst,
    worst_errors,
    write_worst,
)
from pets_core.numbers.measures import photo_errors, pixel_distances

SIDE = 224
PLACE = st.floats(-1, 1, width=32)
ANYWHERE = st.floats(allow_nan=False, allow_infinity=False, width=32)
GREY = Image.new("RGB", (SIDE, SIDE), (90, 90, 90))


def drawn(kind: str, actual, predicted, photo: Image.Image = GREY) -> np.ndarray:
    """Pixels, (height, width, 3)."""
    image = draw_places(photo, kind, np.array(actual, "f4"), np.array(predicted, "f4"))
    return np.asarray(image).astype(int)


def places_of(pixels: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """x and y of the pixels of a colour, (n, 2)."""
    rows, columns = np.nonzero((pixels == colour).all(2))
    return np.stack([columns, rows], axis=1)


def pixel(place: float) -> float:
    return (place + 1) / 2 * (SIDE - 1)


@given(PLACE, PLACE, PLACE, PLACE)
def test_points_are_drawn_where_they_are(x, y, said_x, said_y):
    pixels = drawn("points", [x, y], [said_x, said_y])
    cross = places_of(pixels, PREDICTED)
    off = np.abs(cross - [pixel(said_x), pixel(said_y)]).max(1)
    assert off.min() <= 2, "a cross has its middle at the place"
    circle = places_of(pixels, ACTUAL)
    away = np.linalg.norm(circle - [pixel(x), pixel(y)], axis=1)
    # The cross may lie upon some of it.
    assert len(away) > 4
    assert away.min() > 2
    assert away.max() < 8


@given(PLACE, PLACE, PLACE, PLACE)
def test_the_line_between_ends_at_both(x, y, said_x, said_y):
    line = places_of(drawn("points", [x, y], [said_x, said_y]), PREDICTED)
    ends = np.array([[pixel(x), pixel(y)], [pixel(said_x), pixel(said_y)]])
    assert (line >= ends.min(0) - 6).all()
    assert (line <= ends.max(0) + 6).all()


@given(st.tuples(*[PLACE] * 4), st.tuples(*[PLACE] * 4))
def test_boxes_are_drawn_where_they_are(actual, predicted):
    """Whichever corner is told first."""
    pixels = drawn("box", actual, predicted)
    for numbers, colour in ((actual, ACTUAL), (predicted, PREDICTED)):
        found = places_of(pixels, colour)
        if colour == ACTUAL and not len(found):
            continue  # the other lies upon it
        corners = np.array([pixel(place) for place in numbers]).reshape(2, 2)
        low, high = corners.min(0), corners.max(0)
        assert (found >= low - 2.5).all()
        assert (found <= high + 2.5).all()
        near = np.minimum(np.abs(found - low), np.abs(found - high)).min(1)
        assert (near <= 2.5).all(), "only the edges are drawn"
    assert places_of(pixels, PREDICTED).min(0) == pytest.approx(low, abs=2.5)
    assert places_of(pixels, PREDICTED).max(0) == pytest.approx(high, abs=2.5)


@given(st.sampled_from(["points", "box"]), *[st.tuples(*[ANYWHERE] * 4)] * 2)
def test_what_lies_beyond_the_edge_is_drawn_there(kind, actual, predicted):
    pixels = drawn(kind, actual, predicted)
    assert pixels.shape == (SIDE, SIDE, 3)
    assert len(places_of(pixels, PREDICTED)) > 0


def test_beyond_each_edge_is_at_that_edge():
    for place, axis, at in ((-9, 0, 0), (9, 0, SIDE - 1), (-9, 1, 0), (9, 1, SIDE - 1)):
        numbers = [0.0, 0.0]
        numbers[axis] = place
        found = places_of(drawn("points", numbers, numbers), PREDICTED)
        assert np.abs(found[:, axis] - at).max() <= 6


@pytest.mark.parametrize("colour", ["white", "black", ACTUAL, PREDICTED])
def test_colours_are_seen_on_any_photo(colour):
    plain = Image.new("RGB", (SIDE, SIDE), colour)
    shown = {
        "points": ([0, 0], [0.5, 0.5]),
        "box": ([-0.5, -0.5, 0.5, 0.5], [-0.4, -0.4, 0.6, 0.6]),
    }
    for kind, (actual, said) in shown.items():
        pixels = drawn(kind, actual, said, plain)
        for own in (ACTUAL, PREDICTED, (0, 0, 0)):
            assert len(places_of(pixels, own)) > 20


@pytest.mark.parametrize(("size", "shown"), [((24, 16), (224, 149)), ((300, 900), (75, 224))])
def test_photos_are_drawn_on_at_one_size(size, shown):
    image = draw_places(Image.new("L", size), "points", np.zeros(2, "f4"), np.ones(2, "f4"))
    assert image.size == shown


@pytest.mark.parametrize("targets", ["numbers", "points", "box"])
def test_the_worst_come_first(draw, targets):
    predictions = draw(targets, 40, off=0.3)
    worst = worst_errors(predictions, None)
    info = predictions.info
    errors = photo_errors(targets, info.numbers, predictions.targets, predictions.predicted)
    assert [shown.error for shown in worst] == sorted(errors.tolist(), reverse=True)[:16]
    row = predictions.ids.index(worst[0].photo_id)
    assert worst[0].actual == tuple(predictions.targets[row].tolist())
    assert worst[0].predicted == tuple(predictions.predicted[row].tolist())
    assert {shown.jpeg for shown in worst} == {None}, "the data set is out of reach"
    assert (worst[0].iou is None) == (targets != "box")


def test_sizes_are_those_of_the_photos_in_their_order(stored, judged, caplog):
    predictions = judged("points")
    sizes = photo_sizes(stored.url, predictions.ids)
    assert sizes.tolist() == [[24, 16]] * 12
    worst = worst_errors(predictions, sizes)
    row = predictions.ids.index(worst[0].photo_id)
    pixels = pixel_distances(predictions.targets, predictions.predicted, sizes)
    assert worst[0].pixels == pytest.approx(pixels[row].mean())
    assert photo_sizes(stored.url, ["yeti", *predictions.ids]) is None
    assert "1 of 13 photos are not in it" in caplog.text
    assert photo_sizes("nowhere/pets/f", predictions.ids) is None


def test_each_photo_has_its_own_size(tmp_path):
    sizes = {"id": ["b", "a", "c"], "width": [3, 1, 5], "height": [4, 2, 6]}
    write_table(str(tmp_path / "photos.parquet"), pa.table(sizes))
    assert photo_sizes(str(tmp_path), ["a", "b"]).tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(("targets", "coloured"), [("numbers", False), ("points", True),
                                                   ("box", True)])  # fmt: skip
def test_photos_are_shown_and_kept(judged, tmp_path, targets, coloured):
    worst = worst_errors(judged(targets, off=0.3), None)
    for shown in worst:
        image = Image.open(io.BytesIO(shown.jpeg))
        assert max(image.size) == (SIDE if coloured else 24)
    url = str(tmp_path / "gallery.parquet")
    write_worst(url, worst)
    assert read_worst(url) == worst


def test_the_right_photo_is_drawn_on(judged):
    """JPEG changes colours, and by less than green differs from noise."""
    predictions = judged("points", off=0.0)
    predictions.targets[:] = predictions.predicted[:] = 0.0
    predictions.targets[3] = [-0.8, -0.8]
    shown = worst_errors(predictions, None)[0]
    assert shown.photo_id == predictions.ids[3]
    pixels = np.asarray(Image.open(io.BytesIO(shown.jpeg))).astype(int)
    height, width = pixels.shape[:2]
    x, y = round(0.1 * (width - 1)), round(0.1 * (height - 1))
    ring = pixels[y - 6 : y + 7, x - 6 : x + 7].reshape(-1, 3)
    assert (np.abs(ring - ACTUAL).max(1) < 60).sum() > 15
