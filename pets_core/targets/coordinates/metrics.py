"""Metrics of predicted keypoints and boxes; pure functions of arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["box_iou", "distances", "pixel_distances"]

Numbers = NDArray[np.float32] | NDArray[np.float64]
Floats = NDArray[np.float64]


def distances(targets: Numbers, predicted: Numbers) -> Floats:
    """How far each point is from where it is.

    Args:
        targets: x and y of each point in turn, (N, 2 P).
        predicted: (N, 2 P).

    Returns:
        (N, P), in the units of both.
    """
    steps = (predicted.astype(np.float64) - targets).reshape(len(targets), -1, 2)
    found: Floats = np.hypot(steps[..., 0], steps[..., 1])
    return found


def pixel_distances(targets: Numbers, predicted: Numbers, sizes: NDArray[np.int64]) -> Floats:
    """How far each point is from where it is, in pixels of the upright photo.

    Args:
        targets: x and y of each point in turn, from -1 at the left and upper edge to 1 at the
            others, (N, 2 P).
        predicted: (N, 2 P).
        sizes: Width and height of each photo, pixels, (N, 2).

    Returns:
        (N, P).
    """
    halves = np.tile(sizes / 2, targets.shape[1] // 2)
    return distances(targets * halves, predicted * halves)


def box_iou(one: Numbers, other: Numbers) -> Floats:
    """Intersection over union of boxes: 1 for the same, 0 for those that lie apart.

    A box is found, by custom, where it is 0.5 or more (Everingham and others 2010, PASCAL VOC,
    section 4.2; there a box has its edges' pixels too, here it ends at a line). One whose corners
    are exchanged is empty. It does not matter whether width and height are told in the same unit.

    Args:
        one: xmin, ymin, xmax, ymax, (N, 4).
        other: (N, 4).

    Returns:
        (N,); 0 where both are empty.
    """
    one, other = one.astype(np.float64), other.astype(np.float64)
    corners = np.maximum(one[:, :2], other[:, :2]), np.minimum(one[:, 2:], other[:, 2:])
    shared = _area(np.concatenate(corners, axis=1))
    union = _area(one) + _area(other) - shared
    found: Floats = np.divide(shared, union, out=np.zeros(len(one)), where=union > 0)
    return found


def _area(boxes: Floats) -> Floats:
    area: Floats = np.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(1)
    return area
