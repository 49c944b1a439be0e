"""Metrics of predicted keypoints and boxes; pure functions of arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["box_iou", "distances", "pixel_distances"]

Numbers = NDArray[np.float32] | NDArray[np.float64]
Floats = NDArray[np.float64]


def distances(targets: Numbers, predicted: Numbers) -> Floats:
    """Return the distance of each predicted point from its target.

    Args:
        targets: Alternating x and y of P points, (N, 2 P).
        predicted: (N, 2 P).

    Returns:
        (N, P), in the unit of the coordinates.
    """
    steps = (predicted.astype(np.float64) - targets).reshape(len(targets), -1, 2)
    found: Floats = np.hypot(steps[..., 0], steps[..., 1])
    return found


def pixel_distances(targets: Numbers, predicted: Numbers, sizes: NDArray[np.int64]) -> Floats:
    """Return the distance of each predicted point from its target in pixels of the upright photo.

    Args:
        targets: Alternating x and y of P points, from -1 (left, top) to 1 (right, bottom),
            (N, 2 P).
        predicted: (N, 2 P).
        sizes: Width and height of each photo in pixels, (N, 2).

    Returns:
        (N, P).
    """
    halves = np.tile(sizes / 2, targets.shape[1] // 2)
    return distances(targets * halves, predicted * halves)


def box_iou(one: Numbers, other: Numbers) -> Floats:
    """Return the intersection over union of pairs of boxes, from 0 (disjoint) to 1 (equal).

    A box with swapped corners is empty. The units of x and y may differ. PASCAL VOC counts a box as
    detected at an IoU of 0.5 or more (Everingham et al., 2010, section 4.2); its boxes include the
    pixels of their edges, these do not.

    Args:
        one: xmin, ymin, xmax, ymax, (N, 4).
        other: (N, 4).

    Returns:
        (N,); 0 if both boxes are empty.
    """
    one, other = one.astype(np.float64), other.astype(np.float64)
    corners = np.maximum(one[:, :2], other[:, :2]), np.minimum(one[:, 2:], other[:, 2:])
    shared = _area(np.concatenate(corners, axis=1))
    union = _area(one) + _area(other) - shared
    iou: Floats = np.divide(shared, union, out=np.zeros(len(one)), where=union > 0)
    return iou


def _area(boxes: Floats) -> Floats:
    area: Floats = np.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(1)
    return area
