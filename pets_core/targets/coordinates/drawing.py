"""Draw keypoints and boxes on photos."""

from __future__ import annotations

import io
import logging
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps

from pets_core import storage
from pets_core.data.dataset import read_table
from pets_core.errors import PetsError, wrap_errors
from pets_core.storage.layout import PHOTOS

__all__ = ["ACTUAL", "PREDICTED", "draw_coordinates", "draw_on_jpeg", "read_photo_sizes"]

ACTUAL, PREDICTED = (64, 224, 96), (255, 138, 0)
"""Green and orange; the shapes differ too, for colour-blind readers."""

_log = logging.getLogger(__name__)
_SIDE = 224
_LINE, _RADIUS, _DASH = 2, 5, 7
_DARK = (0, 0, 0)

Canvas = ImageDraw.ImageDraw
Point = tuple[float, float]
Kind = Literal["points", "box"]


def read_photo_sizes(dataset_url: str, ids: list[str]) -> NDArray[np.int64] | None:
    """Read the width and height of upright photos in pixels, (N, 2).

    Args:
        dataset_url: Folder of the version of the data set.
        ids: Ids of N photos.

    Returns:
        Sizes, or None with a warning if they cannot be read.
    """
    try:
        with wrap_errors(f"sizes of the photos of {dataset_url}"):
            index = read_table(storage.join(dataset_url, PHOTOS), ["id", "width", "height"])
            size_of = {
                photo: size for photo, *size in zip(*index.to_pydict().values(), strict=True)
            }
            if missing := sum(photo not in size_of for photo in ids):
                raise PetsError(
                    f"{dataset_url}: {missing} of {len(ids)} photos are missing in the data set"
                )
    except PetsError as error:
        _log.warning("Distances in pixels are not available: %s", error)
        return None
    return np.array([size_of[photo] for photo in ids], np.int64)


def draw_on_jpeg(
    jpeg: bytes, kind: Kind, actual: NDArray[np.float32], predicted: NDArray[np.float32]
) -> bytes:
    """Apply `draw_coordinates` to a JPEG."""
    image = draw_coordinates(Image.open(io.BytesIO(jpeg)), kind, actual, predicted)
    buffer = io.BytesIO()
    # Chroma subsampling would blur thin coloured lines.
    image.save(buffer, "JPEG", quality=80, subsampling=0)
    return buffer.getvalue()


def draw_coordinates(
    photo: Image.Image,
    kind: Kind,
    actual: NDArray[np.float32],
    predicted: NDArray[np.float32],
) -> Image.Image:
    """Draw actual and predicted keypoints or boxes on a photo.

    Actual keypoints are circles and predicted ones crosses. The actual box is a solid line and the
    predicted one a dashed line. Coordinates outside the photo are drawn at its edge.

    Args:
        photo: Upright photo; it is resized to the gallery's size, 224 pixels.
        kind: "points" or "box".
        actual: Coordinates from -1 to 1, (D,).
        predicted: Coordinates from -1 to 1, (D,).
    """
    image = ImageOps.contain(photo.convert("RGB"), (_SIDE, _SIDE), Image.Resampling.LANCZOS)
    canvas = ImageDraw.Draw(image)
    true, found = (_to_pixels(numbers, image.size) for numbers in (actual, predicted))
    # Wider dark lines below make the colours visible on any photo.
    for width, colours in ((_LINE + 2, (_DARK, _DARK)), (_LINE, (ACTUAL, PREDICTED))):
        if kind == "box":
            _draw_solid_box(canvas, true, colours[0], width)
            _draw_dashed_box(canvas, found, colours[1], width)
            continue
        for point, other in zip(true, found, strict=True):
            canvas.line((point, other), colours[1], width - 1)
        for point in true:
            _draw_circle(canvas, point, colours[0], width)
        for point in found:
            _draw_cross(canvas, point, colours[1], width)
    return image


def _to_pixels(numbers: NDArray[np.float32], size: tuple[int, int]) -> list[Point]:
    """Convert alternating x and y from -1 to 1 to pixels, clipped to the image."""
    ends = np.array(size) - 1
    pixels = (numbers.astype(np.float64).reshape(-1, 2) + 1) / 2 * ends
    return [(float(x), float(y)) for x, y in np.clip(pixels, 0, ends)]


def _draw_circle(canvas: Canvas, point: Point, colour: tuple[int, int, int], width: int) -> None:
    x, y = point
    reach = _RADIUS + (width - _LINE) / 2
    canvas.ellipse((x - reach, y - reach, x + reach, y + reach), outline=colour, width=width)


def _draw_cross(canvas: Canvas, point: Point, colour: tuple[int, int, int], width: int) -> None:
    x, y = point
    reach = _RADIUS - 1 + (width - _LINE) / 2
    canvas.line((x - reach, y - reach, x + reach, y + reach), colour, width)
    canvas.line((x - reach, y + reach, x + reach, y - reach), colour, width)


def _ordered(corners: list[Point]) -> tuple[float, float, float, float]:
    """Return left, top, right, bottom of two opposite corners in any order."""
    (x0, y0), (x1, y1) = corners
    return min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)


def _draw_solid_box(
    canvas: Canvas, corners: list[Point], colour: tuple[int, int, int], width: int
) -> None:
    left, top, right, bottom = _ordered(corners)
    outer = (width - 1) / 2
    canvas.rectangle(
        (left - outer, top - outer, right + outer, bottom + outer), outline=colour, width=width
    )


def _draw_dashed_box(
    canvas: Canvas, corners: list[Point], colour: tuple[int, int, int], width: int
) -> None:
    left, top, right, bottom = _ordered(corners)
    for start, end in (
        ((left, top), (right, top)), ((left, bottom), (right, bottom)),
        ((left, top), (left, bottom)), ((right, top), (right, bottom)),
    ):  # fmt: skip
        _draw_dashed_line(canvas, start, end, colour, width)


def _draw_dashed_line(
    canvas: Canvas, start: Point, end: Point, colour: tuple[int, int, int], width: int
) -> None:
    """Draw dashes as long as the gaps, with a dash at each end."""
    origin, step = np.array(start), np.subtract(end, start)
    count = 2 * max(round(float(np.hypot(*step)) / (2 * _DASH)), 0) + 1
    for number in range(0, count, 2):
        dash = origin + step * number / count, origin + step * (number + 1) / count
        canvas.line([(float(x), float(y)) for x, y in dash], colour, width)
