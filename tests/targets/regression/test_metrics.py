"""Errors of numbers and places: worked by hand, and what holds of all of them."""

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pets_core.numbers.measures import (
    baseline_of,
    box_iou,
    distances,
    interval_of_errors,
    measure_numbers,
    photo_errors,
    pixel_distances,
    rmse,
)
from pets_core.records.dataset import NumberInfo

PLACE = st.floats(-2, 2, width=32)


def column(*values: float) -> np.ndarray:
    return np.array(values, np.float32)[:, None]


@st.composite
def boxes(draw, count: int = 3):
    """Boxes with a width and a height."""
    corner = draw(arrays.arrays(np.float32, (count, 2), elements=PLACE))
    size = draw(arrays.arrays(np.float32, (count, 2), elements=st.floats(0.125, 2, width=32)))
    return np.concatenate([corner, corner + size], axis=1)


def flipped(box: np.ndarray) -> np.ndarray:
    """As a photo's mirror image shows it."""
    return np.stack([-box[:, 2], box[:, 1], -box[:, 0], box[:, 3]], axis=1)


def test_errors_of_one_number_worked_by_hand():
    info = NumberInfo(name="age", unit="years", mean=2.0)
    (found,) = measure_numbers([info], column(1, 2, 3, 6), column(1, 3, 3, 3))
    # Errors 0, 1, 0, -3; of the mean 1, 0, -1, -4; squares about the photos' own mean 3 add to 14.
    assert (found.name, found.unit) == ("age", "years")
    assert found.mae == pytest.approx(1.0)
    assert found.rmse == pytest.approx(np.sqrt(10 / 4))
    assert found.bias == pytest.approx(-0.5)
    assert found.r2 == pytest.approx(1 - 10 / 14)
    assert found.median == pytest.approx(0.5)
    assert found.p95 == pytest.approx(1 + 0.85 * 2)
    assert found.baseline_mae == pytest.approx(1.5)
    assert found.baseline_rmse == pytest.approx(np.sqrt(18 / 4))


def test_each_number_has_its_own_errors():
    infos = [NumberInfo(name=name) for name in "ab"]
    first, second = measure_numbers(infos, np.zeros((3, 2)), np.tile([1.0, -2.0], (3, 1)))
    assert (first.name, first.mae, first.bias) == ("a", 1.0, 1.0)
    assert (second.name, second.mae, second.bias) == ("b", 2.0, -2.0)


def test_nothing_is_explained_of_numbers_that_are_all_alike():
    """0.1 is not exact in binary: a mean of many is not it to the last bit."""
    info = NumberInfo(name="a", mean=0.1)
    (found,) = measure_numbers([info], column(*[0.1] * 37), column(*[0.2] * 37))
    assert found.r2 is None
    assert found.mae == pytest.approx(0.1)
    (alone,) = measure_numbers([info], column(1), column(2))
    assert (alone.r2, alone.mae, alone.p95) == (None, 1.0, 1.0)


def test_the_baseline_says_the_mean_of_the_training_photos():
    infos = [NumberInfo(name="a", mean=3.0), NumberInfo(name="b", mean=-1.0)]
    assert baseline_of(infos, 2).tolist() == [[3.0, -1.0], [3.0, -1.0]]
    assert rmse(baseline_of(infos, 2) - np.array([[3.0, 1.0], [3.0, 1.0]])) == pytest.approx(
        np.sqrt(2)
    )


def test_intervals_hold_the_value_and_are_the_same_each_time():
    random = np.random.default_rng(0)
    targets, predicted = random.normal(size=(2, 300, 2))
    mae, overall = interval_of_errors(targets, predicted)
    assert mae.value == pytest.approx(np.abs(targets - predicted).mean())
    assert overall.value == pytest.approx(rmse(targets - predicted))
    for interval in (mae, overall):
        assert interval.low < interval.value < interval.high
    assert interval_of_errors(targets, predicted) == (mae, overall)
    assert interval_of_errors(targets, predicted, seed=1) != (mae, overall)


def test_intervals_are_as_wide_as_the_spread_of_means():
    """Of absolute errors 0 or 1 the standard error of the mean is that of a share."""
    wrong = np.arange(400)[:, None] % 2
    mae, overall = interval_of_errors(np.zeros((400, 1)), wrong.astype(np.float32))
    assert (mae.high - mae.low) / 2 == pytest.approx(1.96 * np.sqrt(0.25 / 400), rel=0.1)
    assert overall.low == pytest.approx(np.sqrt(mae.low))


def test_photos_are_drawn_with_all_of_their_numbers():
    """A number told twice tells nothing new."""
    targets, predicted = np.random.default_rng(0).normal(size=(2, 50, 1))
    once = interval_of_errors(targets, predicted)
    twice = interval_of_errors(np.tile(targets, 2), np.tile(predicted, 2))
    for one, two in zip(once, twice, strict=True):
        assert one.model_dump() == pytest.approx(two.model_dump())


def test_of_one_photo_the_interval_is_its_error():
    mae, overall = interval_of_errors(column(1), column(3))
    assert set(mae.model_dump().values()) == set(overall.model_dump().values()) == {2.0}


def test_distances_worked_by_hand():
    targets = np.array([[0, 0, 1, 1], [0, 0, 0, 0]], np.float32)
    predicted = np.array([[0.3, 0.4, 1, 0], [0, 0, 0, -2]], np.float32)
    assert distances(targets, predicted) == pytest.approx(np.array([[0.5, 1.0], [0.0, 2.0]]))
    # A step of 1 is half of the photo's width or height.
    pixels = pixel_distances(targets, predicted, np.array([[200, 100], [40, 80]]))
    assert pixels == pytest.approx(np.array([[np.hypot(30, 20), 50], [0, 80]]))


@given(arrays.arrays(np.float32, (2, 3, 4), elements=PLACE), st.integers(1, 5000))
def test_distances_are_of_a_plane(places, side):
    one, other = places
    off = distances(one, other)
    assert (off == distances(other, one)).all()
    assert (distances(one, one) == 0).all()
    mirror = np.array([-1, 1, -1, 1], np.float32)
    assert distances(one * mirror, other * mirror) == pytest.approx(off)
    square = np.full((3, 2), side)
    assert pixel_distances(one, other, square) == pytest.approx(off * side / 2)


def test_iou_worked_by_hand():
    one = np.array([[0, 0, 2, 2], [0, 0, 2, 2], [0, 0, 1, 1], [0, 0, 1, 1]], np.float32)
    other = np.array([[1, 1, 3, 3], [0, 0, 2, 1], [1, 0, 2, 1], [1, 1, 0, 0]], np.float32)
    assert box_iou(one, other).tolist() == pytest.approx([1 / 7, 1 / 2, 0, 0])


@given(boxes(), boxes())
def test_iou_is_a_likeness(one, other):
    found = box_iou(one, other)
    assert ((found >= 0) & (found <= 1)).all()
    assert (box_iou(other, one) == found).all()
    assert box_iou(one, one) == pytest.approx(np.ones(3))
    assert box_iou(flipped(one), flipped(other)) == pytest.approx(found)
    turned = [1, 0, 3, 2]
    assert box_iou(one[:, turned], other[:, turned]) == pytest.approx(found)
    wide = np.array([3, 1, 3, 1])
    assert box_iou(one * wide, other * wide) == pytest.approx(found)


@given(boxes())
def test_iou_of_boxes_apart_is_0(one):
    apart = one + np.array([5, 0, 5, 0], np.float32)
    assert (box_iou(one, apart) == 0).all()


@given(boxes(), arrays.arrays(np.float32, (3, 4), elements=PLACE))
def test_a_box_whose_corners_are_exchanged_is_empty(one, numbers):
    inside_out = one[:, [2, 1, 0, 3]]
    assert (box_iou(one, inside_out) == 0).all()
    assert (box_iou(np.zeros_like(one), np.zeros_like(one)) == 0).all()
    assert np.isfinite(box_iou(one, numbers)).all()


def test_the_worst_of_numbers_is_told_in_standard_deviations():
    infos = [NumberInfo(name="a", std=10.0), NumberInfo(name="b", std=0.1)]
    off = np.array([[10.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    found = photo_errors("numbers", infos, np.zeros((3, 2)), off)
    assert found == pytest.approx([np.sqrt(1 / 2), np.sqrt(50), 0])
    same = photo_errors("numbers", [NumberInfo(name="a", std=0.0)], column(1), column(3))
    assert same == pytest.approx([2.0])


def test_the_worst_of_places():
    infos = [NumberInfo(name=name) for name in "abcd"]
    points, off = np.zeros((2, 4)), np.array([[3.0, 4.0, 0.0, 0.0], [1.0, 0.0, 0.0, 1.0]])
    assert photo_errors("points", infos, points, off) == pytest.approx([2.5, 1.0])
    true = np.tile([0.0, 0.0, 1.0, 1.0], (4, 1))
    said = np.array([[0, 0, 1, 1], [0, 0, 1, 0.5], [2, 0, 3, 1], [8, 0, 9, 1]], np.float64)
    found = photo_errors("box", infos, true, said)
    assert found.tolist() == pytest.approx([0.0, 0.5, 3.0, 9.0])
