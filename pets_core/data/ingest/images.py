"""Decode and inspect single photos."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError

from pets_core.data.sources.formats import (
    NO_BYTES,
    NO_DECODER,
    UnreadablePhotoError,
    describe_file,
    photo_formats,
    remedy_by_content,
)
from pets_core.records.base import Resize

__all__ = [
    "MAX_PIXELS",
    "PAD_COLOR",
    "ImageInfo",
    "decode",
    "decode_sized",
    "inspect",
    "is_plain_jpeg",
    "open_rgb",
    "read_orientation",
    "upright_points",
]

MAX_PIXELS = 100_000_000
PAD_COLOR = (124, 116, 104)
"""Mean colour of ImageNet, which normalisation maps to about 0."""

_THUMBNAIL = 32
_JPEG = b"\xff\xd8\xff"

_Orient = Image.Transpose
_TRANSPOSE = {
    2: _Orient.FLIP_LEFT_RIGHT,
    3: _Orient.ROTATE_180,
    4: _Orient.FLIP_TOP_BOTTOM,
    5: _Orient.TRANSPOSE,
    6: _Orient.ROTATE_270,
    7: _Orient.TRANSVERSE,
    8: _Orient.ROTATE_90,
}
"""Transpose that makes a photo upright, by EXIF orientation (CIPA DC-008, tag 274)."""
_SIDEWAYS = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""


class ImageInfo(NamedTuple):
    """Properties of a photo, read from its content.

    Attributes:
        size: Width and height of the upright photo, pixels.
        thumbnail: Input of the perceptual hash: grey, uint8, shape (32, 32).
        orientation: EXIF orientation of the stored pixels, 1 to 8.
    """

    size: tuple[int, int]
    thumbnail: npt.NDArray[np.uint8]
    orientation: int = 1


def read_orientation(data: bytes) -> int:
    """Return the EXIF orientation, 1 to 8, of a photo's bytes; 1 if there is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _orientation(Image.open(io.BytesIO(data), formats=photo_formats()))
    except Exception:  # noqa: BLE001 - decoders raise any error on damaged bytes
        return 1


def is_plain_jpeg(data: bytes) -> bool:
    """Return whether a photo is a JPEG that any decoder decodes as `decode` does.

    Such a JPEG is upright, grey or RGB, and needs no colour conversion. Only the header is read.
    """
    if not data.startswith(_JPEG):
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=("JPEG",))
            profile = image.info.get("icc_profile")
            needs_conversion = bool(profile) and _to_srgb_transform(profile) is not None
            return image.mode in ("L", "RGB") and _orientation(image) == 1 and not needs_conversion
    except Exception:  # noqa: BLE001 - decoders raise any error on damaged bytes
        return False


def upright_points(points: Sequence[float], size: tuple[int, int], orientation: int) -> list[float]:
    """Convert points on the stored pixels to points on the upright photo.

    Args:
        points: x, y, x, y, ... in pixels, origin at the upper left.
        size: Width and height of the stored photo, pixels.
        orientation: EXIF orientation, 1 to 8.
    """
    width, height = size
    turned: list[float] = []
    for x, y in zip(points[::2], points[1::2], strict=True):
        turned += {
            1: (x, y),
            2: (width - x, y),
            3: (width - x, height - y),
            4: (x, height - y),
            5: (y, x),
            6: (height - y, x),
            7: (height - y, width - x),
            8: (y, width - x),
        }[orientation]
    return turned


def open_rgb(data: bytes, *, at_least: int | None = None) -> Image.Image:
    """Decode a photo of any format that Pillow reads to upright sRGB.

    Animations yield their first frame, and transparency is composited over white. Embedded RGB
    profiles of other colour spaces, such as Display P3 or Adobe RGB, are converted to sRGB.

    Grey of more than 8 bits is scaled to 8 bits. In 16 bits, 65,535 is white. 32-bit integers and
    floats are scaled by the smallest of the ranges 0 to 1 (floats only), 0 to 255 and 0 to 65,535
    that holds all values of the photo.

    Args:
        data: The file's bytes.
        at_least: A JPEG may be decoded at a reduced scale with sides of at least so many pixels.

    Raises:
        UnreadablePhotoError: The file is empty, not an image, truncated, larger than `MAX_PIXELS`,
            of a format without a decoder, or has values outside all ranges.
    """
    return _open(data, at_least).image


class _Decoded(NamedTuple):
    """Decoded photo.

    Attributes:
        image: Upright pixels.
        size: Width and height of the upright photo, pixels, before any reduction.
        orientation: EXIF orientation of the stored pixels, 1 to 8.
    """

    image: Image.Image
    size: tuple[int, int]
    orientation: int


def _open(data: bytes, at_least: int | None, draft: str = "RGB") -> _Decoded:
    """Decode a photo; a JPEG with `at_least` is decoded in mode `draft`, "RGB" or "L"."""
    if not data:
        raise UnreadablePhotoError("empty", NO_BYTES)
    try:
        with warnings.catch_warnings():
            # MAX_PIXELS is below Pillow's limit, and bad metadata does not affect the pixels.
            warnings.simplefilter("ignore")
            # Restricting formats skips decoders that cannot identify a file by its first bytes.
            is_jpeg = data.startswith(_JPEG)
            formats = ("JPEG",) if is_jpeg else photo_formats()
            image: Image.Image = Image.open(io.BytesIO(data), formats=formats)
            if image.width * image.height > MAX_PIXELS:
                raise UnreadablePhotoError(
                    "too_many_pixels", f"{image.width}x{image.height} is above {MAX_PIXELS}"
                )
            full = image.size
            if at_least is not None:
                image.draft(draft, (at_least, at_least))
            orientation = _orientation(image)
            inverted = _is_inverted(image)
            image.load()
            # Pillow rotates a TIFF while loading it.
            remaining = _orientation(image) if image.format == "TIFF" else orientation
            upright = image
            if remaining in _TRANSPOSE:
                upright = image.transpose(_TRANSPOSE[remaining])
            # A JPEG may have been decoded at a reduced scale.
            full = full[::-1] if orientation in _SIDEWAYS else full
            size = full if is_jpeg else upright.size
            if not (is_jpeg and upright.mode == draft):
                upright = _to_rgb(upright, inverted)
            if draft == "RGB":
                upright = _to_srgb(upright, image.info.get("icc_profile"))
            return _Decoded(upright, size, orientation)
    except UnreadablePhotoError:
        raise
    except UnidentifiedImageError as error:
        if remedy := remedy_by_content(data):
            raise UnreadablePhotoError(NO_DECODER, remedy) from error
        raise UnreadablePhotoError("not_an_image", describe_file(data)) from error
    except Image.DecompressionBombError as error:
        raise UnreadablePhotoError("too_many_pixels", str(error)) from error
    except Exception as error:
        # Decoders raise any error on damaged bytes: RuntimeError, struct.error, TypeError...
        raise UnreadablePhotoError("damaged", str(error)) from error


def inspect(data: bytes) -> ImageInfo:
    """Decode all data of a photo and return its properties; errors as in `open_rgb`.

    All coefficients of a JPEG are decoded, but only to the scale that the thumbnail needs.
    """
    decoded = _open(data, 2 * _THUMBNAIL, "L")
    grey = decoded.image.convert("L")
    thumbnail = np.asarray(grey.resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS))
    return ImageInfo(decoded.size, thumbnail, decoded.orientation)


def decode(data: bytes, size: int, resize: Resize = "squish") -> npt.NDArray[np.uint8]:
    """Decode a photo and resize it to a square.

    Args:
        data: The file's bytes.
        size: Side of the square, pixels.
        resize: How to make it a square.

    Returns:
        uint8 RGB, shape (size, size, 3).

    Raises:
        UnreadablePhotoError: As in `open_rgb`.
    """
    return decode_sized(data, size, resize)[0]


def decode_sized(
    data: bytes, size: int, resize: Resize = "squish"
) -> tuple[npt.NDArray[np.uint8], tuple[int, int]]:
    """Decode a photo as `decode` does; also return the width and height of the upright photo."""
    decoded = _open(data, size)
    image, square, method = decoded.image, (size, size), Image.Resampling.BILINEAR
    if resize == "crop":
        image = ImageOps.fit(image, square, method)
    elif resize == "pad":
        image = ImageOps.pad(image, square, method, color=PAD_COLOR)
    elif image.size != square:
        image = image.resize(square, method)
    return np.asarray(image), decoded.size


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8, or 1 if there is none; other EXIF may be damaged."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # noqa: BLE001 - Pillow raises any error on damaged EXIF
        found = None
    if found is None:
        # Pillow reads no entries after a damaged one.
        found = _orientation_of(image.info.get("exif") or b"")
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _orientation_of(exif: bytes) -> int | None:
    """Return the orientation in the first directory of EXIF bytes, ignoring other entries."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "little", b"MM": "big"}.get(tiff[:2])
    if order is None:
        return None

    def number(start: int, size: int) -> int:
        return int.from_bytes(tiff[start : start + size], order)  # type: ignore[arg-type]

    first = number(4, 4)
    entries = range(first + 2, first + 2 + 12 * number(first, 2), 12)
    tag = ExifTags.Base.Orientation
    return next((number(at + 8, 2) for at in entries if number(at, 2) == tag), None)


def _is_inverted(image: Image.Image) -> bool:
    """Return whether 0 is white in a TIFF of more than 8 bits, which Pillow ignores."""
    tags = getattr(image, "tag_v2", {})
    return (
        image.mode.startswith(("I", "F")) and tags.get(ExifTags.Base.PhotometricInterpretation) == 0
    )


def _to_rgb(image: Image.Image, inverted: bool = False) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        is_16_bit = image.mode.startswith("I;16")
        values = np.asarray(image)
        levels = (values >> 8).astype(np.uint8) if is_16_bit else _scale_to_uint8(values)
        return Image.fromarray(255 - levels if inverted else levels).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _scale_to_uint8(values: npt.NDArray[np.int32 | np.float32]) -> npt.NDArray[np.uint8]:
    """Scale 32-bit grey (H, W) to 8 bits, by the smallest range that holds all values.

    Floats may exceed the range by a tenth at either end, as after resampling.

    Raises:
        UnreadablePhotoError: A value is negative, not finite or above 65,535.
    """
    low, high = float(values.min()), float(values.max())
    is_float = values.dtype.kind == "f"
    slack = 0.1 if is_float else 0.0
    ranges = (1, 255, 65_535) if is_float else (255, 65_535)
    white = next((r for r in ranges if high <= r * (1 + slack)), None)
    if white is None or not low >= -slack * white:
        raise UnreadablePhotoError(
            "values_out_of_range",
            f"its values run from {low:g} to {high:g}: scale them to 0 to 65,535",
        )
    levels = (values.astype(np.float64) * (255 / white)).round()
    return levels.clip(0, 255).astype(np.uint8)


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert from an embedded RGB profile to sRGB; without a usable profile return `image`."""
    transform = _to_srgb_transform(profile) if profile else None
    return image if transform is None else ImageCms.applyTransform(image, transform) or image


@lru_cache(maxsize=32)
def _to_srgb_transform(profile: bytes) -> ImageCms.ImageCmsTransform | None:
    """Return the transform of a profile to sRGB; None if it is sRGB, not RGB, or damaged."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        about = source.profile
        if about.xcolor_space.strip() != "RGB" or "sRGB" in (about.profile_description or ""):
            return None
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), "RGB", "RGB")
    except (OSError, ImageCms.PyCMSError, TypeError, ValueError):
        return None
