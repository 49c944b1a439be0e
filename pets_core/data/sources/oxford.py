"""Oxford-IIIT Pet dataset in its published form: labels, predefined split, head boxes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from itertools import chain
from pathlib import PurePosixPath
from unicodedata import normalize
from xml.etree.ElementTree import ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from pets_core import storage
from pets_core.config.pipeline import PipelineConfig
from pets_core.data.sources.archives import open_archive
from pets_core.data.sources.catalogue import (
    UNKNOWN_SIZE,
    Box,
    Catalogue,
    LabelledPhoto,
    PredefinedSplit,
    describe_numbers,
)
from pets_core.data.sources.files import Files
from pets_core.data.sources.formats import UnreadablePhotoError
from pets_core.errors import PetsError
from pets_core.records.target_spec import target_spec

__all__ = ["AUTHORS_URL", "OxfordPetSource"]

AUTHORS_URL = "https://www.robots.ox.ac.uk/~vgg/data/pets/data"
"""Parkhi, Vedaldi, Zisserman, Jawahar: Cats and Dogs, CVPR 2012."""
_AUTHORS_CHECKSUMS = {
    "images.tar.gz": "md5:5c4f3ee8e5d25df40f4fd59a7f44e54c",
    "annotations.tar.gz": "md5:95a8c909bbe2e81eed6a22bccdf3f68f",
}
"""Checksums of torchvision.datasets.OxfordIIITPet."""
_COORDINATE_NAMES = {
    "points": ("head centre x", "head centre y"),
    "box": ("head xmin", "head ymin", "head xmax", "head ymax"),
}
"""Names of the coordinates, by kind of target."""


class OxfordPetSource:
    """Source of `images.tar.gz` and `annotations.tar.gz` as published by the authors."""

    has_predefined_split = True

    def __init__(self, url: str, config: PipelineConfig, name: str) -> None:
        self.name, self.url, self._cache_dir = name, url, config.cache_dir
        self._targets = config.source.targets
        published = _AUTHORS_CHECKSUMS if url == AUTHORS_URL else {}
        self._checksums = published | config.source.checksums

    @cached_property
    def files(self) -> Files:
        """Photos in images.tar.gz."""
        return self._archive("images.tar.gz")

    def photo_id(self, path: str) -> str:
        """Return the file name without its suffix."""
        return PurePosixPath(path).stem

    def missing_hint(self, _photo_id: str) -> str:
        """Return no hint: the id is the file name."""
        return ""

    def catalogue(self) -> Catalogue:
        """Read labels from list.txt, the split from trainval.txt and test.txt, boxes from xmls.

        Tags are species and breed. The keypoint is the centre of the head box.

        Raises:
            PetsError: A list is missing, a line is not "name class species breed", or a photo is
                in trainval.txt and test.txt.
        """
        annotations = self._archive("annotations.tar.gz")
        lists = {
            PurePosixPath(path).name: data.decode(errors="replace")
            for path, data in _read_all(annotations, ".txt")
        }
        rows = {name: _parse_list(lists, name, self.url) for name in ("trainval.txt", "test.txt")}
        predefined_splits: dict[str, PredefinedSplit] = {
            **{row[0]: "trainval" for row in rows["trainval.txt"]},
            **{row[0]: "test" for row in rows["test.txt"]},
        }
        if both := {r[0] for r in rows["trainval.txt"]} & {r[0] for r in rows["test.txt"]}:
            raise PetsError(
                f"{self.url}: {len(both)} photos are in trainval.txt and in test.txt, such as "
                f"{min(both)}. Remove them from one list: training photos must not be tested"
            )
        if "list.txt" in lists:
            rows["list.txt"] = _parse_list(lists, "list.txt", self.url)
        heads = {
            self.photo_id(path): _parse_head(xml) for path, xml in _read_all(annotations, ".xml")
        }
        photos: dict[str, LabelledPhoto] = {}
        class_ids: dict[str, int] = {}
        for photo_id, class_id, species_id, _ in chain.from_iterable(rows.values()):
            label = _class_name(photo_id)
            class_ids.setdefault(label, int(class_id))
            box, size = heads.get(photo_id, (None, None))
            photos[photo_id] = LabelledPhoto(
                photo_id,
                label,
                {"1": "cat", "2": "dog"}.get(species_id),
                predefined_splits.get(photo_id),
                box if box and min(box) >= 0 else None,
                numbers=self._coordinates(box),
                annotation_size=size if box else None,
            )
        order = sorted(class_ids, key=lambda label: (class_ids[label], label))
        spec = target_spec(self._targets)
        if spec.is_labels:
            return _with_tags(photos, order)
        if spec.geometry is not None:
            names = _COORDINATE_NAMES[spec.geometry]
            return Catalogue(photos, {}, describe_numbers(self._targets, names))
        species_of = {photo.label: photo.species for photo in photos.values()}
        return Catalogue(photos, {label: species_of[label] for label in order})

    def _coordinates(self, box: Box | None) -> tuple[float, ...] | None:
        """Return the target coordinates of a head in pixels; None: no box, or another target."""
        geometry = target_spec(self._targets).geometry
        if box is None or geometry is None:
            return None
        if geometry == "box":
            return tuple(map(float, box))
        return (box.xmin + box.xmax) / 2, (box.ymin + box.ymax) / 2

    def _archive(self, name: str) -> Files:
        url = storage.join(self.url, name)
        return open_archive(url, self._cache_dir, self._checksums.get(name, ""))


def _with_tags(photos: dict[str, LabelledPhoto], breeds: list[str]) -> Catalogue:
    """Return the photos with species and breed as tags. The vocabulary lists species first."""
    species = sorted({photo.species for photo in photos.values() if photo.species})
    tagged = {
        photo.id: replace(photo, tags=(*([photo.species] if photo.species else []), photo.label))
        for photo in photos.values()
    }
    return Catalogue(tagged, dict.fromkeys([*species, *breeds]))


def _read_all(files: Files, suffix: str) -> Iterator[tuple[str, bytes]]:
    """Yield path and bytes of all files with a suffix."""
    paths = [
        entry.path
        for entry in files.entries()
        if entry.path.endswith(suffix) and not entry.skip_reason
    ]
    for path, data in zip(paths, files.read(paths), strict=True):
        if isinstance(data, UnreadablePhotoError):
            raise PetsError(f"annotations.tar.gz: {path}: {data}. Download the archive again")
        yield path, data


def _parse_head(xml: bytes) -> tuple[Box | None, tuple[int, int] | None]:
    """Parse a Pascal VOC file.

    Returns:
        The box of the first object, and the width and height of the photo, pixels. Both None if
        the file has no valid box. `UNKNOWN_SIZE` if it has a box but no size.
    """
    try:
        root = fromstring(xml)
        found = root.find(".//bndbox")
        if found is None:
            return None, None
        box = Box(*(round(float(found.findtext(field, ""))) for field in Box._fields))
        sides = [round(float(root.findtext(f"size/{side}") or 0)) for side in ("width", "height")]
    except (ParseError, DefusedXmlException, ValueError, OverflowError):
        return None, None
    if box.xmin >= box.xmax or box.ymin >= box.ymax:
        return None, None
    # Some tools write 0 for an unknown size.
    return box, (sides[0], sides[1]) if all(sides) else UNKNOWN_SIZE


def _parse_list(lists: dict[str, str], name: str, url: str) -> list[tuple[str, str, str, str]]:
    """Parse one of the lists into rows of name, class id, species id and breed id."""
    if name not in lists:
        raise PetsError(f"{url}/annotations.tar.gz contains no {name}")
    rows = []
    for number, line in enumerate(lists[name].splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        parts = line.split()
        if len(parts) != 4 or not all(part.isdigit() for part in parts[1:]):
            raise PetsError(
                f'{url}: {name}, line {number}: expected "name class species breed", got {line!r}'
            )
        # File names in archives are NFC-normalized as well.
        rows.append((normalize("NFC", parts[0]), parts[1], parts[2], parts[3]))
    return rows


def _class_name(photo_id: str) -> str:
    return " ".join(word.title() for word in photo_id.rsplit("_", 1)[0].split("_"))
