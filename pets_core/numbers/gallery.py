"""The photos a model was farthest off on, with the places drawn on them."""

from __future__ import annotations

import io
import logging
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps

from pets_core import storage
from pets_core.data.dataset import read_table, write_table
from pets_core.errors import PetsError, telling
from pets_core.evaluation.gallery import photos
from pets_core.numbers.measures import box_iou, photo_errors, pixel_distances
from pets_core.numbers.predictions import NumberPredictions
from pets_core.numbers.records import NumberTargets

__all__ = [
    "ACTUAL",
    "PREDICTED",
    "WorstError",
    "draw_places",
    "photo_sizes",
    "read_worst",
    "worst_errors",
    "write_worst",
]

ACTUAL, PREDICTED = (64, 224, 96), (255, 138, 0)
"""Green and orange; the forms differ too, for those who cannot tell the colours apart."""

_log = logging.getLogger(__name__)
_NUM_PHOTOS = 16
_SIDE = 224
_LINE, _RADIUS, _DASH = 2, 5, 7
_DARK = (0, 0, 0)

Canvas = ImageDraw.ImageDraw
Place = tuple[float, float]


@dataclass(frozen=True)
class WorstError:
    """A photo and what the model said of it.

    Attributes:
        photo_id: Its id in the data set.
        actual: Its numbers, D.
        predicted: What the model said, D.
        error: By how much it was off, as `photo_errors` tells it.
        pixels: Mean distance of its points from where they are, pixels of the upright photo; None
            where no points are told, or its size is out of reach.
        iou: Intersection over union of its box; None where no box is told.
        jpeg: The photo, small, with places drawn on it; None where the data set is out of reach.
    """

    photo_id: str
    actual: tuple[float, ...]
    predicted: tuple[float, ...]
    error: float
    pixels: float | None = None
    iou: float | None = None
    jpeg: bytes | None = None


def worst_errors(
    predictions: NumberPredictions, sizes: NDArray[np.int64] | None
) -> tuple[WorstError, ...]:
    """The photos of greatest error, the worst first, fetched and drawn on.

    Args:
        predictions: Of the photos judged.
        sizes: Width and height of each photo, (N, 2), where they are in reach.
    """
    info, kind = predictions.info, predictions.info.targets
    errors = photo_errors(kind, info.numbers, predictions.targets, predictions.predicted)
    rows = np.argsort(-errors, kind="stable")[:_NUM_PHOTOS]
    actual, predicted = predictions.targets[rows], predictions.predicted[rows]
    nothing = [None] * len(rows)
    pixels = ious = nothing
    if kind == "points" and sizes is not None:
        pixels = pixel_distances(actual, predicted, sizes[rows]).mean(1).tolist()
    if kind == "box":
        ious = box_iou(actual, predicted).tolist()
    ids = [predictions.ids[row] for row in rows]
    jpegs = photos(info.dataset_url, ids, _SIDE)
    return tuple(
        WorstError(
            photo_id=ids[place],
            actual=tuple(actual[place].tolist()),
            predicted=tuple(predicted[place].tolist()),
            error=float(errors[rows[place]]),
            pixels=pixels[place],
            iou=ious[place],
            jpeg=_drawn(jpegs.get(ids[place]), kind, actual[place], predicted[place]),
        )
        for place in range(len(rows))
    )


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


def _drawn(
    data: bytes | None,
    kind: NumberTargets,
    actual: NDArray[np.float32],
    predicted: NDArray[np.float32],
) -> bytes | None:
    if data is None or kind == "numbers":
        return data
    image = draw_places(Image.open(io.BytesIO(data)), kind, actual, predicted)
    buffer = io.BytesIO()
    # Thin lines of colour are blurred where JPEG keeps fewer pixels of colour than of light.
    image.save(buffer, "JPEG", quality=80, subsampling=0)
    return buffer.getvalue()


def draw_places(
    photo: Image.Image,
    kind: NumberTargets,
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


def write_worst(url: str, worst: tuple[WorstError, ...]) -> None:
    """Write a row a photo, the worst first."""
    write_table(url, pa.Table.from_pylist([vars(shown) for shown in worst], _SCHEMA))


def read_worst(url: str) -> tuple[WorstError, ...]:
    """Read what `write_worst` wrote."""
    rows = read_table(url).to_pylist()
    lists = ("actual", "predicted")
    return tuple(WorstError(**row | {name: tuple(row[name]) for name in lists}) for row in rows)


_SCHEMA = pa.schema(
    [("photo_id", pa.string()), ("actual", pa.list_(pa.float64())),
     ("predicted", pa.list_(pa.float64())), ("error", pa.float64()), ("pixels", pa.float64()),
     ("iou", pa.float64()), ("jpeg", pa.binary())]
)  # fmt: skip
