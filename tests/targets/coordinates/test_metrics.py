"""Distances and intersection over union: hand-computed values and properties."""

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pets_core.targets.coordinates.metrics import box_iou, distances, pixel_distances
from pets_core.targets.coordinates.target import BoxEvaluator, PointsEvaluator

COORDINATE = st.floats(-2, 2, width=32)


@st.composite
def boxes(draw, count: int = 3):
    """Draw boxes of positive width and height."""
    corner = draw(arrays.arrays(np.float32, (count, 2), elements=COORDINATE))
    size = draw(arrays.arrays(np.float32, (count, 2), elements=st.floats(0.125, 2, width=32)))
    return np.concatenate([corner, corner + size], axis=1)


def flipped(box: np.ndarray) -> np.ndarray:
    """Mirror boxes horizontally."""
    return np.stack([-box[:, 2], box[:, 1], -box[:, 0], box[:, 3]], axis=1)


def test_distances_computed_by_hand():
    targets = np.array([[0, 0, 1, 1], [0, 0, 0, 0]], np.float32)
    predicted = np.array([[0.3, 0.4, 1, 0], [0, 0, 0, -2]], np.float32)
    assert distances(targets, predicted) == pytest.approx(np.array([[0.5, 1.0], [0.0, 2.0]]))
    # 1 unit is half of the photo's width or height.
    pixels = pixel_distances(targets, predicted, np.array([[200, 100], [40, 80]]))
    assert pixels == pytest.approx(np.array([[np.hypot(30, 20), 50], [0, 80]]))


@given(arrays.arrays(np.float32, (2, 3, 4), elements=COORDINATE), st.integers(1, 5000))
def test_distances_are_symmetric_and_invariant_to_mirroring(coordinates, side):
    one, other = coordinates
    off = distances(one, other)
    assert (off == distances(other, one)).all()
    assert (distances(one, one) == 0).all()
    mirror = np.array([-1, 1, -1, 1], np.float32)
    assert distances(one * mirror, other * mirror) == pytest.approx(off)
    square = np.full((3, 2), side)
    assert pixel_distances(one, other, square) == pytest.approx(off * side / 2)


def test_iou_computed_by_hand():
    one = np.array([[0, 0, 2, 2], [0, 0, 2, 2], [0, 0, 1, 1], [0, 0, 1, 1]], np.float32)
    other = np.array([[1, 1, 3, 3], [0, 0, 2, 1], [1, 0, 2, 1], [1, 1, 0, 0]], np.float32)
    assert box_iou(one, other).tolist() == pytest.approx([1 / 7, 1 / 2, 0, 0])


@given(boxes(), boxes())
def test_iou_is_symmetric_and_invariant(one, other):
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
def test_iou_of_disjoint_boxes_is_0(one):
    apart = one + np.array([5, 0, 5, 0], np.float32)
    assert (box_iou(one, apart) == 0).all()


@given(boxes(), arrays.arrays(np.float32, (3, 4), elements=COORDINATE))
def test_inverted_box_is_empty(one, numbers):
    inside_out = one[:, [2, 1, 0, 3]]
    assert (box_iou(one, inside_out) == 0).all()
    assert (box_iou(np.zeros_like(one), np.zeros_like(one)) == 0).all()
    assert np.isfinite(box_iou(one, numbers)).all()


def test_photo_errors_are_mean_distances_or_one_minus_iou(draw_kind):
    points = draw_kind("points", 2, names=list("abcd"))
    points.targets[:], points.outputs[:] = 0, [[3.0, 4.0, 0.0, 0.0], [1.0, 0.0, 0.0, 1.0]]
    # A side is 2 long.
    assert PointsEvaluator(points).photo_errors == pytest.approx([2.5 / 2, 1.0 / 2])
    box = draw_kind("box", 4)
    box.targets[:] = [0.0, 0.0, 1.0, 1.0]
    box.outputs[:] = [[0, 0, 1, 1], [0, 0, 1, 0.5], [2, 0, 3, 1], [8, 0, 9, 1]]
    assert BoxEvaluator(box).photo_errors == pytest.approx([0.0, 0.5, 3.0, 9.0])
