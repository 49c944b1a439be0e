"""Bytes of one photo to pixels."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from pets_core.data.sources.formats import (
    NO_BYTES,
    NO_DECODER,
    UnreadablePhotoError,
    describe_file,
    find_remedy,
    photo_formats,
)

__all__ = [
    "MAX_PIXELS",
    "ImageInfo",
    "decode",
    "decode_sized",
    "inspect",
    "is_plain_jpeg",
    "open_rgb",
    "read_orientation",
    "upright_places",
]

MAX_PIXELS = 100_000_000

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
"""What makes a photo upright, by its EXIF orientation (CIPA DC-008, tag 274)."""
_SIDEWAYS = (5, 6, 7, 8)
"""EXIF orientations that exchange width and height."""


@dataclass(frozen=True)
class ImageInfo:
    """What a photo really is: type by content, size in pixels after EXIF rotation.

    Attributes:
        format: Pillow's name of the type.
        width: Pixels.
        height: Pixels.
        thumbnail: Grey, uint8, shape (32, 32): what the perceptual hash is made of.
        orientation: The EXIF orientation of the stored pixels, 1 to 8.
    """

    format: str
    width: int
    height: int
    thumbnail: npt.NDArray[np.uint8]
    orientation: int = 1


def read_orientation(data: bytes) -> int:
    """The EXIF orientation of a photo's stored pixels, 1 to 8; 1 where there is none.

    Args:
        data: The file's bytes.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _orientation(Image.open(io.BytesIO(data), formats=photo_formats()))
    except Exception:  # noqa: BLE001 - on damaged bytes the decoders raise anything
        return 1


def is_plain_jpeg(data: bytes) -> bool:
    """Return whether a photo is a JPEG that any decoder reads as `decode` does.

    That is one which is upright, grey or RGB, and has no colour profile to be converted. Only the
    header is read.
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
    except Exception:  # noqa: BLE001 - on damaged bytes the decoders raise anything
        return False


def upright_places(places: Sequence[float], size: tuple[int, int], orientation: int) -> list[float]:
    """Places on the stored pixels as places on the upright photo.

    Args:
        places: x and y in turn, pixels from the upper left.
        size: Width and height of the stored photo, pixels.
        orientation: EXIF's, 1 to 8.
    """
    width, height = size
    turned: list[float] = []
    for x, y in zip(places[::2], places[1::2], strict=True):
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


def open_rgb(data: bytes, *, at_least: int | None = None) -> tuple[Image.Image, str]:
    """Decode a photo of any format Pillow reads to upright sRGB.

    The first frame of an animation is taken and transparency is laid over white. An embedded RGB
    profile of other colours, as Display P3 or Adobe RGB, is converted to sRGB.

    Grey of more than 8 bits is scaled to 8. Of 16 bits, 65,535 is white. Integers of 32 bits and
    floats are scaled by the smallest of the ranges 0 to 1 (floats alone), 0 to 255 and 0 to 65,535
    that holds all of the photo's values.

    Args:
        data: The file's bytes.
        at_least: A JPEG may be decoded at a reduced scale whose sides are no smaller than this,
            pixels.

    Returns:
        The picture, and the format's name.

    Raises:
        UnreadablePhotoError: Empty, not an image, cut short, more than `MAX_PIXELS`, of a format
            without a decoder, or with values in none of the ranges.
    """
    decoded = _open(data, at_least)
    return decoded.image, decoded.format


class _Decoded(NamedTuple):
    """A decoded photo.

    Attributes:
        image: Its pixels, upright.
        format: Pillow's name of the type.
        size: Width and height of the upright photo, pixels, before any reduction.
        orientation: The EXIF orientation of the stored pixels, 1 to 8.
    """

    image: Image.Image
    format: str
    size: tuple[int, int]
    orientation: int


def _open(data: bytes, at_least: int | None, draft: str = "RGB") -> _Decoded:
    """Decode; a JPEG that may be reduced is decoded in mode `draft`, "RGB" or "L"."""
    if not data:
        raise UnreadablePhotoError("empty", NO_BYTES)
    try:
        with warnings.catch_warnings():
            # Our own bound is below Pillow's, and odd metadata does not spoil the pixels.
            warnings.simplefilter("ignore")
            # Without the hint, formats that cannot tell by the first bytes are tried in vain.
            is_jpeg = data.startswith(_JPEG)
            formats = ("JPEG",) if is_jpeg else photo_formats()
            image: Image.Image = Image.open(io.BytesIO(data), formats=formats)
            file_format = image.format or "unknown"
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
            # Pillow turns a TIFF when it loads it.
            remaining = _orientation(image) if file_format == "TIFF" else orientation
            upright = image
            if remaining in _TRANSPOSE:
                upright = image.transpose(_TRANSPOSE[remaining])
            # A JPEG may be reduced.
            full = full[::-1] if orientation in _SIDEWAYS else full
            size = full if is_jpeg else upright.size
            if not (is_jpeg and upright.mode == draft):
                upright = _to_rgb(upright, inverted)
            if draft == "RGB":
                upright = _to_srgb(upright, image.info.get("icc_profile"))
            return _Decoded(upright, file_format, size, orientation)
    except UnreadablePhotoError:
        raise
    except UnidentifiedImageError as error:
        if remedy := find_remedy(data):
            raise UnreadablePhotoError(NO_DECODER, remedy) from error
        raise UnreadablePhotoError("not_an_image", describe_file(data)) from error
    except Image.DecompressionBombError as error:
        raise UnreadablePhotoError("too_many_pixels", str(error)) from error
    except Exception as error:
        # On damaged bytes the decoders raise anything: RuntimeError, struct.error, TypeError...
        raise UnreadablePhotoError("damaged", str(error)) from error


def inspect(data: bytes) -> ImageInfo:
    """Decode all of a photo's data and say what it is; errors as `open_rgb`.

    Of a JPEG every coefficient is decoded, but only as many pixels are made of them as the
    thumbnail needs.
    """
    decoded = _open(data, 2 * _THUMBNAIL, "L")
    grey = decoded.image.convert("L")
    thumbnail = np.asarray(grey.resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS))
    return ImageInfo(decoded.format, *decoded.size, thumbnail, decoded.orientation)


def decode(data: bytes, size: int) -> npt.NDArray[np.uint8]:
    """Decode a photo and stretch it to a square, so that nothing of it is cut off.

    Args:
        data: The file's bytes.
        size: Side of the square, pixels.

    Returns:
        uint8 RGB, shape (size, size, 3).

    Raises:
        UnreadablePhotoError: As `open_rgb`.
    """
    return decode_sized(data, size)[0]


def decode_sized(data: bytes, size: int) -> tuple[npt.NDArray[np.uint8], tuple[int, int]]:
    """Decode a photo as `decode`, and return the width and height of the upright photo too."""
    decoded = _open(data, size)
    image = decoded.image
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image), decoded.size


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none. The rest of EXIF may be broken."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # noqa: BLE001 - on damaged EXIF Pillow raises anything
        found = None
    if found is None:
        # Pillow reads no entry after a broken one.
        found = _orientation_of(image.info.get("exif") or b"")
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _orientation_of(exif: bytes) -> int | None:
    """The orientation in the first directory of EXIF bytes, without a look at any other entry."""
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
    """Whether 0 is white, in a TIFF of more than 8 bits, of which Pillow takes no notice."""
    tags = getattr(image, "tag_v2", {})
    return (
        image.mode.startswith(("I", "F")) and tags.get(ExifTags.Base.PhotometricInterpretation) == 0
    )


def _to_rgb(image: Image.Image, inverted: bool = False) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        is_16_bit = image.mode.startswith("I;16")
        values = np.asarray(image)
        levels = (values >> 8).astype(np.uint8) if is_16_bit else _scaled(values)
        return Image.fromarray(255 - levels if inverted else levels).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _scaled(values: npt.NDArray[np.int32 | np.float32]) -> npt.NDArray[np.uint8]:
    """Grey of 32 bits to 8, by the smallest range that holds all values (H, W).

    Floats may be up to a tenth of the range beyond its ends, as resampling leaves them.

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
    """Convert from an embedded RGB profile to sRGB; a photo without a usable one stays as it is."""
    transform = _to_srgb_transform(profile) if profile else None
    return image if transform is None else ImageCms.applyTransform(image, transform) or image


@lru_cache(maxsize=32)
def _to_srgb_transform(profile: bytes) -> ImageCms.ImageCmsTransform | None:
    """The transform of a profile to sRGB; None where it is sRGB, not of RGB, or damaged."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        about = source.profile
        if about.xcolor_space.strip() != "RGB" or "sRGB" in (about.profile_description or ""):
            return None
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), "RGB", "RGB")
    except (OSError, ImageCms.PyCMSError, TypeError, ValueError):
        return None
