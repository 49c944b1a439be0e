"""Labels of a source: annotations per photo, the vocabulary, and the source interface."""

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
    "PredefinedSplit",
    "Source",
    "describe_numbers",
]

UNKNOWN_SIZE = (0, 0)
"""`annotation_size` of an annotation file without an image size."""
PredefinedSplit = Literal["trainval", "train", "valid", "test"]
"""Predefined split of a photo; "trainval": the validation set is sampled from it."""


class Box(NamedTuple):
    """Corners of a bounding box in pixels, origin at the top left of the photo."""

    xmin: int
    ymin: int
    xmax: int
    ymax: int


@dataclass(frozen=True)
class LabelledPhoto:
    """Annotations of one photo.

    Attributes:
        id: Unique id of the photo.
        label: Class; empty: none.
        species: Species of the class; None: unknown.
        predefined_split: Predefined split; None: the source has none for this photo.
        head_box: Bounding box of the animal's head; None: not annotated.
        tags: Tags, in vocabulary order; empty for other targets.
        numbers: Numbers, or coordinates in pixels; None: not annotated.
        annotation_size: Width and height in pixels of the photo that coordinates and box refer to:
            as stored or upright. `UNKNOWN_SIZE`: one of the two. None: the upright photo.
        group: A random split keeps all photos of a group together; empty: no group.
    """

    id: str
    label: str
    species: str | None = None
    predefined_split: PredefinedSplit | None = None
    head_box: Box | None = None
    tags: tuple[str, ...] = ()
    numbers: tuple[float, ...] | None = None
    annotation_size: tuple[int, int] | None = None
    group: str = ""

    def label_names(self, targets: str) -> tuple[str, ...]:
        """Return the class or the tags, depending on the kind of target; empty: neither."""
        spec = target_spec(targets)
        if spec.is_label:
            return (self.label,)
        return self.tags if spec.is_labels else ()

    @property
    def target_text(self) -> str:
        """Class, tags or numbers as text, for messages."""
        target = self.tags if self.numbers is None else self.numbers
        return self.label or ", ".join(map(str, target))


@dataclass(frozen=True)
class Catalogue:
    """Annotated photos of a source, and its vocabulary.

    Attributes:
        photos: Photos by id.
        vocabulary: Species (or None) by class or tag, in index order; empty for numeric targets.
        numbers: Names and units of numeric targets, in order; empty for other targets.
        warnings: Warnings about the source, one sentence each.
        skipped: Reason and detail, by id, of photos that the source leaves unlabelled on purpose.
    """

    photos: dict[str, LabelledPhoto]
    vocabulary: dict[str, str | None]
    numbers: tuple[NumberInfo, ...] = ()
    warnings: tuple[str, ...] = ()
    skipped: Mapping[str, tuple[str, str]] = field(default_factory=dict)


class Source(Protocol):
    """Interface of a source of labelled photos."""

    name: str
    url: str

    @property
    def has_predefined_split(self) -> bool:
        """Whether the source has predefined training and test (or validation) photos."""

    @property
    def files(self) -> Files:
        """All files of the source, photos and others."""

    def catalogue(self) -> Catalogue:
        """Return annotations and vocabulary. Decodes no photos.

        Raises:
            PetsError: The annotations are missing or in an undocumented format.
        """

    def photo_id(self, path: str) -> str:
        """Return the id of the photo in the file `path`."""

    def missing_hint(self, photo_id: str) -> str:
        """Return where a missing photo was expected and which setting to change; may be empty."""


def describe_numbers(
    targets: str, names: Sequence[str], units: Sequence[str] = ()
) -> tuple[NumberInfo, ...]:
    """Return name and unit of each number.

    Coordinates (x and y in turn) have the units half widths and half heights.
    """
    if target_spec(targets).geometry is not None:
        units = ["half widths", "half heights"] * (len(names) // 2)
    units = units or [""] * len(names)
    return tuple(NumberInfo(name=n, unit=u) for n, u in zip(names, units, strict=True))
