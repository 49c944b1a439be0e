"""Which files are photos: by their names, by their first bytes, and by the decoders at hand."""

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
    "find_remedy",
    "is_named_as_photo",
    "is_named_otherwise",
    "is_photo_name",
    "is_plainly_no_photo",
    "may_be_photo",
    "may_be_photo_name",
    "missing_decoder",
    "photo_formats",
    "refuse_raw",
]

NO_DECODER = "no_decoder"
"""Reason of a photo whose format needs a package that is not installed."""

NO_BYTES = "the file has no bytes"
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
    allowed = photo_formats()
    return frozenset(s for s, form in Image.registered_extensions().items() if form in allowed)


_UNUSED_FORMATS = frozenset({"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"})


@cache
def photo_formats() -> tuple[str, ...]:
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


def is_named_as_photo(path: str) -> bool:
    """Whether a file's name ends as a photo's, of a format with or without a decoder."""
    return is_photo_name(path) or missing_decoder(path) is not None


def may_be_photo(path: str) -> bool:
    """Whether a file's name ends as a photo's, or in nothing."""
    return is_named_as_photo(path) or may_be_photo_name(path)


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
    return is_named_otherwise(path) or detail not in (_UNKNOWN, NO_BYTES)


def describe_file(data: bytes) -> str:
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


def find_remedy(data: bytes) -> str | None:
    """What to do with bytes of a format that has no decoder here; None: any other bytes."""
    if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS and "HEIF" not in photo_formats():
        return _HEIF
    if data.startswith(_JXL_STARTS) and "JXL" not in photo_formats():
        return _JXL
    return _RAW if data.startswith(_RAW_STARTS) or data[4:12] == b"ftypcrx " else None
