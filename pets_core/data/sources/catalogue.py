"""What a source says of its photos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from pets_core.data.sources.files import Files
from pets_core.records.dataset import NumberInfo
from pets_core.records.target_spec import target_spec

__all__ = [
    "UNKNOWN_SIZE",
    "Box",
    "Catalogue",
    "LabelledPhoto",
    "Official",
    "Source",
    "describe_numbers",
]

UNKNOWN_SIZE = (0, 0)
"""`annotation_size` of an annotation that does not give one."""
Official = Literal["trainval", "train", "valid", "test"]


class Box(NamedTuple):
    """Corners of a box, pixels from the photo's upper left."""

    xmin: int
    ymin: int
    xmax: int
    ymax: int


@dataclass(frozen=True)
class LabelledPhoto:
    """What a source says of one photo.

    Attributes:
        id: Of the photo.
        label: Its class; empty where the source tells none.
        species: Of the class.
        official: None where the source publishes no lists.
        head_box: Around the animal's head, where it is marked.
        tags: Where tags are learnt, any number of them, in the vocabulary's order.
        numbers: Where numbers or places are learnt; places are pixels. None: the source has none.
        annotation_size: Width and height of the photo that places and box refer to, pixels: those
            of the stored or of the upright photo; `UNKNOWN_SIZE`: either. None: of the upright one.
        group: Photos of one group are on one side of a random split; empty: it is alone.
    """

    id: str
    label: str
    species: str | None = None
    official: Official | None = None
    head_box: Box | None = None
    tags: tuple[str, ...] = ()
    numbers: tuple[float, ...] | None = None
    annotation_size: tuple[int, int] | None = None
    group: str = ""

    def names(self, targets: str) -> tuple[str, ...]:
        """Its class or its tags, whichever are the target."""
        spec = target_spec(targets)
        if spec.is_label:
            return (self.label,)
        return self.tags if spec.is_labels else ()

    @property
    def target_text(self) -> str:
        """Its class, tags or numbers, for messages."""
        target = self.tags if self.numbers is None else self.numbers
        return self.label or ", ".join(map(str, target))


@dataclass(frozen=True)
class Catalogue:
    """The labelled photos by id, and the vocabulary in its order.

    Attributes:
        photos: By id.
        classes: Species (or None) by class or tag, in index order; empty where numbers are learnt.
        numbers: Where they are learnt, in their order.
        warnings: What is odd about the source, a sentence each.
        skipped: Reason and detail, by id, of photos that the source gives no label on purpose.
    """

    photos: dict[str, LabelledPhoto]
    classes: dict[str, str | None]
    numbers: tuple[NumberInfo, ...] = ()
    warnings: tuple[str, ...] = ()
    skipped: Mapping[str, tuple[str, str]] = field(default_factory=dict)


class Source(Protocol):
    """One place with labelled photos."""

    name: str
    url: str

    @property
    def has_official_split(self) -> bool:
        """Whether the source says which photos are for training and which for judging."""

    @property
    def files(self) -> Files:
        """Its files, photos and others."""

    def catalogue(self) -> Catalogue:
        """Return labels and vocabulary, without reading the photos.

        Raises:
            PetsError: The labels are absent or not of the documented form.
        """

    def photo_id(self, path: str) -> str:
        """The id of the photo in the file at `path`."""

    def missing_hint(self, photo_id: str) -> str:
        """Where a listed photo was looked for and what to set; empty where nothing is known."""


def describe_numbers(
    targets: str, names: Sequence[str], units: Sequence[str] = ()
) -> tuple[NumberInfo, ...]:
    """Say what numbers are; places on a photo, x and y in turn, are told in halves of its sides."""
    if target_spec(targets).geometry is not None:
        units = ["half widths", "half heights"] * (len(names) // 2)
    units = units or [""] * len(names)
    return tuple(NumberInfo(name=n, unit=u) for n, u in zip(names, units, strict=True))
