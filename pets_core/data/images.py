"""Bytes of one photo to pixels."""

from __future__ import annotations

import io
import mimetypes
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

__all__ = [
    "MAX_PIXELS",
    "NO_DECODER",
    "ImageInfo",
    "UnreadablePhotoError",
    "decode",
    "decoders",
    "inspect",
    "is_named_otherwise",
    "is_photo_name",
    "is_plainly_no_photo",
    "may_be_photo_name",
    "missing_decoder",
    "open_rgb",
    "read_orientation",
    "refuse_raw",
    "upright_places",
]

MAX_PIXELS = 100_000_000

NO_DECODER = "no_decoder"
"""Reason of a photo whose format needs a package that is not installed."""

_THUMBNAIL = 32

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

_NO_BYTES = "the file has no bytes"
_UNKNOWN = "of no known type"
_OTHER_TIFF = (
    "a TIFF of values that Pillow does not read, as 64-bit floats: save it with 32-bit floats or "
    "16-bit integers"
)

_PLUGINS = {"pillow_heif": "register_heif_opener", "pillow_jxl": ""}
"""Optional packages with decoders for Pillow, and what registers each; empty: its import does."""
_HEIF = "install the decoder: pip install 'pets-pipeline[heif]'"
_JXL = "install the decoder: pip install 'pets-pipeline[jxl]'"
_RAW = "develop it to JPEG or TIFF first, for instance with the package rawpy"
_CONVERT = "convert it to PNG, TIFF or JPEG first"
_OTHER_SUFFIXES = (".ai", ".dcm", ".dicom", ".djvu", ".eps", ".exr", ".hdr", ".jxr", ".svg", ".xcf")
_RAW_SUFFIXES = (
    ".3fr .arw .cr2 .cr3 .crw .dcr .dng .erf .iiq .kdc .mrw .nef .nrw .orf .pef .raf .rw2 .rwl "
    ".sr2 .srf .srw .x3f"
)
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")
_JXL_STARTS = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")
_RAW_STARTS = (b"FUJIFILMCCD-RAW", b"IIRO", b"IIU\0")
_REMEDIES = (
    dict.fromkeys((".heic", ".heif", ".hif"), _HEIF)
    | {".jxl": _JXL}
    | dict.fromkeys(_RAW_SUFFIXES.split(), _RAW)
    | dict.fromkeys(_OTHER_SUFFIXES, _CONVERT)
)
"""What to do with a photo of a format that Pillow has no decoder for, by its suffix."""


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


def missing_decoder(path: str) -> str | None:
    """What to do with a file whose name ends as a photo's without a decoder; None: any other."""
    suffix = _suffix(path).lower()
    return None if suffix in _photo_suffixes() else _REMEDIES.get(suffix)


def read_orientation(data: bytes) -> int:
    """The EXIF orientation of a photo's stored pixels, 1 to 8; 1 where there is none.

    Args:
        data: The file's bytes.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _orientation(Image.open(io.BytesIO(data), formats=_formats()))
    except Exception:  # noqa: BLE001 - on damaged bytes the decoders raise anything
        return 1


def _turned(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Width and height of the upright photo, of those of the stored one, or the other way round."""
    return size[::-1] if orientation in _SIDEWAYS else size


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


def refuse_raw(path: str) -> None:
    """Raise for a camera's raw file, of which Pillow would decode the small preview.

    Raises:
        UnreadablePhotoError: The name ends as a raw format's.
    """
    if _REMEDIES.get(_suffix(path).lower()) == _RAW:
        raise UnreadablePhotoError(NO_DECODER, _RAW)


def decoders() -> tuple[str, ...]:
    """The installed packages that add decoders to Pillow's."""
    return tuple(name for name in _PLUGINS if find_spec(name) is not None)


def _suffix(path: str) -> str:
    """As pathlib's, which takes ten times as long for each of a million files."""
    stem, dot, suffix = path.rsplit("/", 1)[-1].rpartition(".")
    return dot + suffix if stem else ""


@cache
def _photo_suffixes() -> frozenset[str]:
    allowed = _formats()
    return frozenset(s for s, form in Image.registered_extensions().items() if form in allowed)


_UNUSED_FORMATS = frozenset({"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"})


@cache
def _formats() -> tuple[str, ...]:
    """The formats that Pillow and its installed plugins decode.

    Not those that it runs other programs for, as PostScript is code, or only recognises.
    """
    Image.init()
    for package, register in _PLUGINS.items():
        try:
            plugin = import_module(package)
        except ImportError:
            continue
        if register:
            getattr(plugin, register)()
    return tuple(name for name in Image.OPEN if name not in _UNUSED_FORMATS)


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
        raise UnreadablePhotoError("empty", _NO_BYTES)
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
            orientation = _orientation(image)
            inverted = _is_inverted(image)
            image.load()
            # Pillow turns a TIFF when it loads it.
            remaining = _orientation(image) if file_format == "TIFF" else orientation
            upright = image
            if remaining in _TRANSPOSE:
                upright = image.transpose(_TRANSPOSE[remaining])
            size = _turned(full, orientation) if is_jpeg else upright.size
            if not (is_jpeg and upright.mode == draft):
                upright = _to_rgb(upright, inverted)
            if draft == "RGB":
                upright = _to_srgb(upright, image.info.get("icc_profile"))
            return _Decoded(upright, file_format, size, orientation)
    except UnreadablePhotoError:
        raise
    except UnidentifiedImageError as error:
        if remedy := _remedy(data):
            raise UnreadablePhotoError(NO_DECODER, remedy) from error
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
    image, _ = open_rgb(data, at_least=size)
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image)


def is_named_otherwise(path: str) -> bool:
    """Whether a file's name ends as that of a known type which is not an image."""
    kind, _ = mimetypes.guess_type(path.rsplit("/", 1)[-1])
    return kind is not None and not kind.startswith("image/")


def is_plainly_no_photo(path: str, detail: str) -> bool:
    """Whether name or content of a file that is not an image show that it was not meant to be one.

    Args:
        path: Of the file.
        detail: Of the `UnreadablePhotoError` "not_an_image" or "empty".
    """
    if is_photo_name(path):
        return False
    return is_named_otherwise(path) or detail not in (_UNKNOWN, _NO_BYTES)


def _what(data: bytes) -> str:
    """What a file that is no image seems to be, by its first bytes."""
    known = {
        b"MATLAB": "a MATLAB file",
        b"\x00\x05\x16\x07": "an AppleDouble file",
        b"PK\x03\x04": "a zip archive",
        b"\x1f\x8b": "a gzip file",
        b"%PDF": "a PDF",
        b"<": "markup",
        b"\x93NUMPY": "a NumPy array",
        b"II*\0": _OTHER_TIFF,
        b"MM\0*": _OTHER_TIFF,
        b"\xd0\xcf\x11\xe0": "a thumbnail cache or an Office file",
    }
    found = next((what for magic, what in known.items() if data.startswith(magic)), None)
    return found or ("text" if _is_text(data[:1024]) else _UNKNOWN)


def _is_text(data: bytes) -> bool:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        # The last character may be cut.
        if error.start < len(data) - 3:
            return False
        text = data[: error.start].decode()
    return all(character.isprintable() or character.isspace() for character in text)


def _remedy(data: bytes) -> str | None:
    """What to do with bytes of a format that has no decoder here; None: any other bytes."""
    if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS and "HEIF" not in _formats():
        return _HEIF
    if data.startswith(_JXL_STARTS) and "JXL" not in _formats():
        return _JXL
    return _RAW if data.startswith(_RAW_STARTS) or data[4:12] == b"ftypcrx " else None


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
    return image.mode.startswith(("I", "F")) and tags.get(262) == 0


def _to_rgb(image: Image.Image, inverted: bool = False) -> Image.Image:
    if image.mode.startswith("I;16"):
        levels = (np.asarray(image, np.uint32) >> 8).astype(np.uint8)
        return Image.fromarray(255 - levels if inverted else levels).convert("RGB")
    if image.mode in ("I", "F"):
        levels = _scaled(np.asarray(image))
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
