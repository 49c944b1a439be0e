"""What a source says of its photos."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from pets_core.data.files import Files

__all__ = ["Box", "Catalogue", "LabelledPhoto", "Official", "Source"]

Official = Literal["trainval", "train", "valid", "test"]


class Box(NamedTuple):
    """Corners of a box, pixels from the photo's upper left."""

    xmin: int
    ymin: int
    xmax: int
    ymax: int


@dataclass(frozen=True)
class LabelledPhoto:
    """What a source says of one photo; `official` is None where it publishes no lists."""

    id: str
    label: str
    species: str | None = None
    official: Official | None = None
    head_box: Box | None = None


@dataclass(frozen=True)
class Catalogue:
    """The labelled photos by id, and the label vocabulary in its order."""

    photos: dict[str, LabelledPhoto]
    classes: dict[str, str | None]
    """Species (or None) by class name, in index order."""


class Source(Protocol):
    """One place with labelled photos."""

    name: str
    url: str
    has_official_split: bool

    @property
    def files(self) -> Files:
        """Its files, photos and others."""
        ...

    def catalogue(self) -> Catalogue:
        """Return labels and vocabulary, without reading the photos.

        Raises:
            PetsError: The labels are absent or not of the documented form.
        """
        ...

    def photo_id(self, path: str) -> str:
        """The id of the photo in the file at `path`."""
        ...
