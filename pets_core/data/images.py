"""Bytes of one photo to pixels."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

__all__ = [
    "MAX_PIXELS",
    "ImageInfo",
    "UnreadablePhotoError",
    "decode",
    "inspect",
    "is_photo_name",
    "may_be_photo_name",
    "open_rgb",
]

MAX_PIXELS = 100_000_000

_THUMBNAIL = 32
_LYING = (5, 6, 7, 8)
"""EXIF orientations that exchange width and height."""


@dataclass(frozen=True)
class ImageInfo:
    """What a photo really is: type by content, size in pixels after EXIF rotation.

    Attributes:
        format: Pillow's name of the type.
        width: Pixels.
        height: Pixels.
        thumbnail: Grey, uint8, shape (32, 32): what the perceptual hash is made of.
    """

    format: str
    width: int
    height: int
    thumbnail: npt.NDArray[np.uint8]


class UnreadablePhotoError(Exception):
    """A file that is no usable photo; `reason` is a short code, `detail` the decoder's words."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def is_photo_name(path: str) -> bool:
    """Whether a file's name ends as one of Pillow's formats does, and is no AppleDouble file."""
    name = path.rsplit("/", 1)[-1]
    return _suffix(name).lower() in _photo_suffixes() and not name.startswith("._")


def may_be_photo_name(path: str) -> bool:
    """Whether a file's name does not speak against it: it ends as a photo's does, or in nothing."""
    return is_photo_name(path) or not _suffix(path)


def _suffix(path: str) -> str:
    """As pathlib's, which takes ten times as long for each of a million files."""
    stem, dot, suffix = path.rsplit("/", 1)[-1].rpartition(".")
    return dot + suffix if stem else ""


@cache
def _photo_suffixes() -> frozenset[str]:
    allowed = _formats()
    return frozenset(s for s, form in Image.registered_extensions().items() if form in allowed)


@cache
def _formats() -> tuple[str, ...]:
    """Pillow's formats but those it has other programs run for: PostScript is code."""
    Image.init()
    return tuple(name for name in Image.OPEN if name not in ("EPS", "WMF"))


def open_rgb(data: bytes, *, at_least: int | None = None) -> tuple[Image.Image, str]:
    """Decode a photo of any format Pillow reads to upright RGB.

    The first frame of an animation is taken; transparency is laid over white; 16-bit grey is
    scaled to 8.

    Args:
        data: The file's bytes.
        at_least: A JPEG may be decoded at a reduced scale whose sides are no smaller than this,
            pixels.

    Returns:
        The picture, and the format's name.

    Raises:
        UnreadablePhotoError: Empty, not an image, cut short, or more than `MAX_PIXELS`.
    """
    image, file_format, _ = _open(data, at_least)
    return image, file_format


def _open(
    data: bytes, at_least: int | None, draft: str = "RGB"
) -> tuple[Image.Image, str, tuple[int, int]]:
    """Decode; return the picture, the format's name, and the upright photo's full size.

    A JPEG decoded at a reduced scale may be asked for in mode `draft`, "RGB" or "L".
    """
    if not data:
        raise UnreadablePhotoError("empty", "the file has no bytes")
    try:
        with warnings.catch_warnings():
            # Our own bound is below Pillow's, and odd metadata does not spoil the pixels.
            warnings.simplefilter("ignore")
            # Without the hint, formats that cannot tell by the first bytes are tried in vain.
            is_jpeg = data.startswith(b"\xff\xd8\xff")
            formats = ("JPEG",) if is_jpeg else _formats()
            image: Image.Image = Image.open(io.BytesIO(data), formats=formats)
            file_format = image.format or "unknown"
            if image.width * image.height > MAX_PIXELS:
                raise UnreadablePhotoError(
                    "too_many_pixels", f"{image.width}x{image.height} is above {MAX_PIXELS}"
                )
            full = image.size
            if at_least is not None:
                image.draft(draft, (at_least, at_least))
            image.load()
            if image.getexif().get(ExifTags.Base.Orientation) in _LYING:
                full = full[::-1]
            upright = ImageOps.exif_transpose(image)
            plain = is_jpeg and upright.mode == draft
            return upright if plain else _to_rgb(upright), file_format, full
    except UnreadablePhotoError:
        raise
    except UnidentifiedImageError as error:
        raise UnreadablePhotoError("not_an_image", _what(data)) from error
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
    image, file_format, (width, height) = _open(data, 2 * _THUMBNAIL, "L")
    grey = image.convert("L").resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS)
    return ImageInfo(file_format, width, height, np.asarray(grey))


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
    image, _ = open_rgb(data, at_least=size)
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image)


def _what(data: bytes) -> str:
    """What a file that is no image seems to be, by its first bytes."""
    known = {
        b"MATLAB": "a MATLAB file",
        b"\x00\x05\x16\x07": "an AppleDouble file",
        b"PK\x03\x04": "a zip archive",
        b"\x1f\x8b": "a gzip file",
        b"%PDF": "a PDF",
        b"<": "markup",
    }
    return next((w for magic, w in known.items() if data.startswith(magic)), "of no known type")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        return Image.fromarray((np.asarray(image, np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")
