"""Recognize photo files by name, first bytes and available decoders."""

from __future__ import annotations

import mimetypes
from functools import cache
from importlib import import_module
from importlib.util import find_spec

from PIL import Image

__all__ = [
    "NO_BYTES",
    "NO_DECODER",
    "UnreadablePhotoError",
    "decoders",
    "describe_file",
    "has_decodable_suffix",
    "has_non_image_suffix",
    "has_photo_suffix",
    "is_clearly_not_photo",
    "may_be_photo",
    "photo_formats",
    "refuse_raw",
    "remedy_by_content",
    "remedy_by_suffix",
]

NO_DECODER = "no_decoder"
"""Reason code of a photo whose format needs a package that is not installed."""

NO_BYTES = "the file has no bytes"
_UNKNOWN = "of no known type"
_OTHER_TIFF = (
    "a TIFF of values that Pillow does not read, as 64-bit floats: save it with 32-bit floats or "
    "16-bit integers"
)

_PLUGINS = {"pillow_heif": "register_heif_opener", "pillow_jxl": ""}
"""Registration function of each optional decoder package; empty: importing it registers it."""
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
"""Remedy by suffix, for formats that Pillow alone cannot decode."""


class UnreadablePhotoError(Exception):
    """A file that cannot be used as a photo.

    Attributes:
        reason: Reason code, such as "damaged".
        detail: Message of the decoder, or the remedy.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail

    @property
    def text(self) -> str:
        """Reason and detail, for users."""
        return f"{self.reason.replace('_', ' ')}: {self.detail}"


def has_decodable_suffix(path: str) -> bool:
    """Whether the name has the suffix of a decodable format and is not an AppleDouble file."""
    name = path.rsplit("/", 1)[-1]
    return _suffix(name).lower() in _photo_suffixes() and not name.startswith("._")


def remedy_by_suffix(path: str) -> str | None:
    """Return the remedy for a photo suffix without an installed decoder; None: another suffix."""
    suffix = _suffix(path).lower()
    return None if suffix in _photo_suffixes() else _REMEDIES.get(suffix)


def refuse_raw(path: str) -> None:
    """Reject camera raw files, of which Pillow would decode only the small preview.

    Raises:
        UnreadablePhotoError: The name has the suffix of a raw format.
    """
    if _REMEDIES.get(_suffix(path).lower()) == _RAW:
        raise UnreadablePhotoError(NO_DECODER, _RAW)


def decoders() -> tuple[str, ...]:
    """Return the installed packages that add decoders to Pillow."""
    return tuple(name for name in _PLUGINS if find_spec(name) is not None)


def _suffix(path: str) -> str:
    """Return the suffix as pathlib does, ten times as fast."""
    stem, dot, suffix = path.rsplit("/", 1)[-1].rpartition(".")
    return dot + suffix if stem else ""


@cache
def _photo_suffixes() -> frozenset[str]:
    allowed = photo_formats()
    return frozenset(s for s, form in Image.registered_extensions().items() if form in allowed)


_UNUSED_FORMATS = frozenset({"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"})


@cache
def photo_formats() -> tuple[str, ...]:
    """Return the formats that Pillow and its installed plugins decode.

    Excludes formats that run external programs (PostScript is code) or are only identified.
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


def has_photo_suffix(path: str) -> bool:
    """Whether the name has the suffix of a photo format, with or without a decoder."""
    return has_decodable_suffix(path) or remedy_by_suffix(path) is not None


def may_be_photo(path: str) -> bool:
    """Whether the name has the suffix of a photo format, or no suffix."""
    return has_photo_suffix(path) or not _suffix(path)


def has_non_image_suffix(path: str) -> bool:
    """Whether the name has the suffix of a known file type that is not an image."""
    mime_type, _ = mimetypes.guess_type(path.rsplit("/", 1)[-1])
    return mime_type is not None and not mime_type.startswith("image/")


def is_clearly_not_photo(path: str, detail: str) -> bool:
    """Whether the name or content of an undecodable file shows that it is not a photo.

    Args:
        path: Path of the file.
        detail: Detail of its `UnreadablePhotoError` "not_an_image" or "empty".
    """
    if has_decodable_suffix(path):
        return False
    return has_non_image_suffix(path) or detail not in (_UNKNOWN, NO_BYTES)


def describe_file(data: bytes) -> str:
    """Describe the type of a non-image file by its first bytes."""
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
    found = next((name for magic, name in known.items() if data.startswith(magic)), None)
    return found or ("text" if _is_text(data[:1024]) else _UNKNOWN)


def _is_text(data: bytes) -> bool:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        # The last character may be incomplete.
        if error.start < len(data) - 3:
            return False
        text = data[: error.start].decode()
    return all(character.isprintable() or character.isspace() for character in text)


def remedy_by_content(data: bytes) -> str | None:
    """Return the remedy for image data without an installed decoder; None: other data."""
    if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS and "HEIF" not in photo_formats():
        return _HEIF
    if data.startswith(_JXL_STARTS) and "JXL" not in photo_formats():
        return _JXL
    return _RAW if data.startswith(_RAW_STARTS) or data[4:12] == b"ftypcrx " else None
