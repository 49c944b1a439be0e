"""How far predicted numbers and places are from what they are; pure functions of arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pets_core.numbers.records import Interval, NumberMeasures, NumberTargets
from pets_core.records.dataset import NumberInfo

__all__ = [
    "baseline_of",
    "box_iou",
    "distances",
    "interval_of_errors",
    "measure_numbers",
    "photo_errors",
    "pixel_distances",
    "rmse",
]

_RESAMPLES, _ENDS = 2_000, (0.025, 0.975)

Numbers = NDArray[np.float32] | NDArray[np.float64]
Floats = NDArray[np.float64]


def measure_numbers(
    infos: Sequence[NumberInfo], targets: Numbers, predicted: Numbers
) -> tuple[NumberMeasures, ...]:
    """Errors of each number, beside those of one who always says the training photos' mean.

    Args:
        infos: D.
        targets: (N, D), of one photo at least.
        predicted: (N, D).
    """
    actual, said = targets.astype(np.float64), predicted.astype(np.float64)
    return tuple(_measure(info, actual[:, i], said[:, i]) for i, info in enumerate(infos))


def _measure(info: NumberInfo, actual: Floats, predicted: Floats) -> NumberMeasures:
    errors, beside = predicted - actual, info.mean - actual
    sizes = np.abs(errors)
    median, p95 = np.quantile(sizes, (0.5, 0.95))
    return NumberMeasures(
        name=info.name,
        unit=info.unit,
        mae=float(sizes.mean()),
        rmse=rmse(errors),
        bias=float(errors.mean()),
        r2=_explained(actual, errors),
        median=float(median),
        p95=float(p95),
        baseline_mae=float(np.abs(beside).mean()),
        baseline_rmse=rmse(beside),
    )


def _explained(actual: Floats, errors: Floats) -> float | None:
    """Coefficient of determination: 0 of one who says the mean of the very photos judged."""
    if np.ptp(actual) == 0:
        return None
    return float(1 - np.square(errors).sum() / np.square(actual - actual.mean()).sum())


def rmse(errors: Numbers) -> float:
    """Root of the mean squared error, whatever the shape."""
    return float(np.sqrt(np.mean(np.square(errors, dtype=np.float64))))


def baseline_of(infos: Sequence[NumberInfo], num_rows: int) -> Floats:
    """What one says who always says the training photos' mean, (num_rows, D)."""
    return np.tile(np.array([info.mean for info in infos], np.float64), (num_rows, 1))


def interval_of_errors(
    targets: Numbers, predicted: Numbers, *, seed: int = 0
) -> tuple[Interval, Interval]:
    """MAE and RMSE over all numbers, with percentile bootstrap intervals.

    Photos are drawn with replacement, each with all of its numbers (Efron and Tibshirani 1993). Of
    one photo alone every resample is the same, and the interval is empty.

    Args:
        targets: (N, D), of one photo at least.
        predicted: (N, D).
        seed: Of the resamples.

    Returns:
        The interval of the MAE, and that of the RMSE.
    """
    errors = predicted.astype(np.float64) - targets
    of_photo = np.stack([np.abs(errors).mean(1), np.square(errors).mean(1)], axis=1)
    random, count = np.random.default_rng(seed), len(of_photo)
    drawn = np.array(
        [of_photo[random.integers(0, count, count)].mean(0) for _ in range(_RESAMPLES)]
    )
    values, (lows, highs) = of_photo.mean(0), np.quantile(drawn, _ENDS, axis=0)
    mae = Interval(value=float(values[0]), low=float(lows[0]), high=float(highs[0]))
    roots = (float(np.sqrt(ends[1])) for ends in (values, lows, highs))
    return mae, Interval(**dict(zip(("value", "low", "high"), roots, strict=True)))


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


def photo_errors(
    kind: NumberTargets, infos: Sequence[NumberInfo], targets: Numbers, predicted: Numbers
) -> Floats:
    """By how much the model was off on each photo, so that the worst can be found, (N,).

    Of numbers the root mean square of errors in standard deviations of the training photos, for
    numbers have different units; of points the mean distance, in halves of the photo's sides; of
    boxes 1 - IoU and, so that of boxes that lie apart the farthest is worst, how far corners are.

    Args:
        kind: What the numbers are.
        infos: D.
        targets: (N, D).
        predicted: (N, D).
    """
    if kind == "numbers":
        spread = np.array([info.std if info.std > 0 else 1.0 for info in infos])
        errors = (predicted.astype(np.float64) - targets) / spread
        return np.sqrt(np.square(errors).mean(1))  # type: ignore[no-any-return]
    off: Floats = distances(targets, predicted).mean(1)
    if kind == "points":
        return off
    iou = box_iou(targets, predicted)
    return 1 - iou + np.where(iou == 0, off, 0)
