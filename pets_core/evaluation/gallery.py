"""Galleries of the report: thumbnails of evaluated photos with their predictions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from pets_core.data.dataset import load_manifest, read_table, write_table
from pets_core.data.gallery import thumbnails
from pets_core.errors import PetsError, wrap_errors

__all__ = ["Gallery", "Picture", "fetch_photos", "read_gallery", "write_gallery"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Picture:
    """A photo, its target and its prediction.

    Attributes:
        photo_id: Its id in the data set.
        actual: The target as text.
        predicted: The prediction as text.
        detail: Loss or error as text, such as "loss 2.31".
        is_correct: Whether the prediction is correct; None if that does not apply.
        group: Heading shared by pictures; empty: none.
        jpeg: Thumbnail of the photo; None if the data set is unavailable.
        map_jpeg: Activation map over the photo; None if not computed.
    """

    photo_id: str
    actual: str
    predicted: str
    detail: str = ""
    is_correct: bool | None = None
    group: str = ""
    jpeg: bytes | None = None
    map_jpeg: bytes | None = None


Gallery = Mapping[str, Sequence[Picture]]
"""Pictures by part of the gallery, the worst prediction first."""


def fetch_photos(
    gallery: Gallery,
    dataset_url: str,
    side: int,
    *,
    maps_url: str | None = None,
    draw: Callable[[str, bytes], bytes] | None = None,
) -> Gallery:
    """Return the gallery with thumbnails.

    Args:
        gallery: Pictures without thumbnails.
        dataset_url: Folder of the data set version. If it cannot be read, a warning is logged and
            the pictures stay without thumbnails.
        side: Longer side of a thumbnail, pixels.
        maps_url: Parquet file with activation maps by photo id.
        draw: Returns the annotated JPEG of a photo, from its id and JPEG.
    """
    ids = {picture.photo_id for pictures in gallery.values() for picture in pictures}
    photos, maps = _photos(dataset_url, ids, side), _maps(maps_url)
    if draw:
        photos = {photo_id: draw(photo_id, jpeg) for photo_id, jpeg in photos.items()}

    def with_photo(picture: Picture) -> Picture:
        photo_id = picture.photo_id
        return replace(picture, jpeg=photos.get(photo_id), map_jpeg=maps.get(photo_id))

    return {part: [with_photo(picture) for picture in own] for part, own in gallery.items()}


def _photos(dataset_url: str, ids: Iterable[str], side: int) -> dict[str, bytes]:
    try:
        with wrap_errors(f"photos of {dataset_url}"):
            return thumbnails(load_manifest(dataset_url), ids, side)
    except PetsError as error:
        _log.warning("Galleries are written without photos: %s", error)
        return {}


def _maps(url: str | None) -> dict[str, bytes]:
    if url is None:
        return {}
    table = read_table(url, ["id", "jpeg"])
    return dict(zip(table["id"].to_pylist(), table["jpeg"].to_pylist(), strict=True))


def write_gallery(url: str, gallery: Gallery) -> None:
    """Write one row per picture, with its part of the gallery in the first column."""
    rows = [
        {"part": part, **vars(picture)}
        for part, pictures in gallery.items()
        for picture in pictures
    ]
    write_table(url, pa.Table.from_pylist(rows, _SCHEMA))


def read_gallery(url: str) -> Gallery:
    """Read a file of `write_gallery`; parts without pictures are absent."""
    gallery: dict[str, list[Picture]] = {}
    for row in read_table(url).to_pylist():
        gallery.setdefault(row.pop("part"), []).append(Picture(**row))
    return gallery


_SCHEMA = pa.schema(
    [("part", pa.string()), ("photo_id", pa.string()), ("actual", pa.string()),
     ("predicted", pa.string()), ("detail", pa.string()), ("is_correct", pa.bool_()),
     ("group", pa.string()), ("jpeg", pa.binary()), ("map_jpeg", pa.binary())]
)  # fmt: skip
