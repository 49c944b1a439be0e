"""Keypoints and boxes drawn on photos."""

from __future__ import annotations

import io
import logging
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps

from pets_core import storage
from pets_core.data.dataset import read_table
from pets_core.errors import PetsError, telling

__all__ = ["ACTUAL", "PREDICTED", "draw_on_jpeg", "draw_places", "photo_sizes"]

ACTUAL, PREDICTED = (64, 224, 96), (255, 138, 0)
"""Green and orange; the forms differ too, for those who cannot tell the colours apart."""

_log = logging.getLogger(__name__)
_SIDE = 224
_LINE, _RADIUS, _DASH = 2, 5, 7
_DARK = (0, 0, 0)

Canvas = ImageDraw.ImageDraw
Place = tuple[float, float]
Kind = Literal["points", "box"]


def photo_sizes(dataset_url: str, ids: list[str]) -> NDArray[np.int64] | None:
    """Width and height of upright photos, pixels, (N, 2); None where they are out of reach.

    Args:
        dataset_url: Folder of the version of the data set.
        ids: Of the photos, N.
    """
    try:
        with telling(f"sizes of the photos of {dataset_url}"):
            index = read_table(
                storage.join(dataset_url, "photos.parquet"), ["id", "width", "height"]
            )
            size_of = {
                photo: size for photo, *size in zip(*index.to_pydict().values(), strict=True)
            }
            if lacking := sum(photo not in size_of for photo in ids):
                raise PetsError(f"{dataset_url}: {lacking} of {len(ids)} photos are not in it")
    except PetsError as error:
        _log.warning("distances are not told in pixels: %s", error)
        return None
    return np.array([size_of[photo] for photo in ids], np.int64)


def draw_on_jpeg(
    jpeg: bytes, kind: Kind, actual: NDArray[np.float32], predicted: NDArray[np.float32]
) -> bytes:
    """Draw on a photo as `draw_places`."""
    image = draw_places(Image.open(io.BytesIO(jpeg)), kind, actual, predicted)
    buffer = io.BytesIO()
    # Thin lines of colour are blurred where JPEG keeps fewer pixels of colour than of light.
    image.save(buffer, "JPEG", quality=80, subsampling=0)
    return buffer.getvalue()


def draw_places(
    photo: Image.Image,
    kind: Kind,
    actual: NDArray[np.float32],
    predicted: NDArray[np.float32],
) -> Image.Image:
    """Draw on a photo where points or a box are, and where they were said to be.

    Points are circles and are said to be at crosses, a box is a whole and a broken line. What lies
    beyond the photo's edge is drawn at it.

    Args:
        photo: Upright; it is made as large as a picture of the gallery, 224 pixels.
        kind: "points" or "box".
        actual: (D,).
        predicted: (D,).
    """
    image = ImageOps.contain(photo.convert("RGB"), (_SIDE, _SIDE), Image.Resampling.LANCZOS)
    canvas = ImageDraw.Draw(image)
    true, said = (_places(numbers, image.size) for numbers in (actual, predicted))
    # Dark lines first, wider: a colour is seen on any photo then.
    for width, colours in ((_LINE + 2, (_DARK, _DARK)), (_LINE, (ACTUAL, PREDICTED))):
        if kind == "box":
            _whole_box(canvas, true, colours[0], width)
            _broken_box(canvas, said, colours[1], width)
            continue
        for place, other in zip(true, said, strict=True):
            canvas.line((place, other), colours[1], width - 1)
        for place in true:
            _circle(canvas, place, colours[0], width)
        for place in said:
            _cross(canvas, place, colours[1], width)
    return image


def _places(numbers: NDArray[np.float32], size: tuple[int, int]) -> list[Place]:
    """Pixels of x and y in turn, held within the picture."""
    ends = np.array(size) - 1
    pixels = (numbers.astype(np.float64).reshape(-1, 2) + 1) / 2 * ends
    return [(float(x), float(y)) for x, y in np.clip(pixels, 0, ends)]


def _circle(canvas: Canvas, place: Place, colour: tuple[int, int, int], width: int) -> None:
    x, y = place
    reach = _RADIUS + (width - _LINE) / 2
    canvas.ellipse((x - reach, y - reach, x + reach, y + reach), outline=colour, width=width)


def _cross(canvas: Canvas, place: Place, colour: tuple[int, int, int], width: int) -> None:
    x, y = place
    reach = _RADIUS - 1 + (width - _LINE) / 2
    canvas.line((x - reach, y - reach, x + reach, y + reach), colour, width)
    canvas.line((x - reach, y + reach, x + reach, y - reach), colour, width)


def _ordered(corners: list[Place]) -> tuple[float, float, float, float]:
    """Left, top, right, bottom, whichever corner was said first."""
    (x0, y0), (x1, y1) = corners
    return min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)


def _whole_box(
    canvas: Canvas, corners: list[Place], colour: tuple[int, int, int], width: int
) -> None:
    left, top, right, bottom = _ordered(corners)
    outer = (width - 1) / 2
    canvas.rectangle(
        (left - outer, top - outer, right + outer, bottom + outer), outline=colour, width=width
    )


def _broken_box(
    canvas: Canvas, corners: list[Place], colour: tuple[int, int, int], width: int
) -> None:
    left, top, right, bottom = _ordered(corners)
    for start, end in (
        ((left, top), (right, top)), ((left, bottom), (right, bottom)),
        ((left, top), (left, bottom)), ((right, top), (right, bottom)),
    ):  # fmt: skip
        _broken_line(canvas, start, end, colour, width)


def _broken_line(
    canvas: Canvas, start: Place, end: Place, colour: tuple[int, int, int], width: int
) -> None:
    """Dashes as long as the gaps, the first and the last at the corners."""
    gone, step = np.array(start), np.subtract(end, start)
    count = 2 * max(round(float(np.hypot(*step)) / (2 * _DASH)), 0) + 1
    for number in range(0, count, 2):
        dash = gone + step * number / count, gone + step * (number + 1) / count
        canvas.line([(float(x), float(y)) for x, y in dash], colour, width)
