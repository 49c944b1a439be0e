"""The Oxford-IIIT Pet data set as its authors publish it: labels, official lists, head boxes."""

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
    Official,
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
"""As torchvision.datasets.OxfordIIITPet has them."""
_PLACES = {
    "points": ("head centre x", "head centre y"),
    "box": ("head xmin", "head ymin", "head xmax", "head ymax"),
}
"""What is found on a photo, by what is learnt."""


class OxfordPetSource:
    """`images.tar.gz` and `annotations.tar.gz`, as the authors publish them."""

    has_official_split = True

    def __init__(self, url: str, config: PipelineConfig, name: str = "oxford-iiit-pet") -> None:
        self.name, self.url, self._cache_dir = name, url, config.cache_dir
        self._targets = config.source.targets
        known = _AUTHORS_CHECKSUMS if url == AUTHORS_URL else {}
        self._checksums = known | config.source.checksums

    @cached_property
    def files(self) -> Files:
        """The photos."""
        return self._archive("images.tar.gz")

    def photo_id(self, path: str) -> str:
        """The file's name without its suffix."""
        return PurePosixPath(path).stem

    def missing_hint(self, _photo_id: str) -> str:
        """The name alone says enough."""
        return ""

    def catalogue(self) -> Catalogue:
        """Read labels from list.txt, the split from trainval.txt and test.txt, boxes from xmls.

        Tags are the species and the breed. The point is the centre of the head's box.

        Raises:
            PetsError: A list is absent or a line is not "name class species breed".
        """
        annotations = self._archive("annotations.tar.gz")
        lists = {
            PurePosixPath(path).name: data.decode(errors="replace")
            for path, data in _read_all(annotations, ".txt")
        }
        rows = {name: _rows(lists, name, self.url) for name in ("trainval.txt", "test.txt")}
        official: dict[str, Official] = {
            **{row[0]: "trainval" for row in rows["trainval.txt"]},
            **{row[0]: "test" for row in rows["test.txt"]},
        }
        if both := {r[0] for r in rows["trainval.txt"]} & {r[0] for r in rows["test.txt"]}:
            raise PetsError(
                f"{self.url}: {len(both)} photos are in trainval.txt and in test.txt, {min(both)} "
                "for one: a model would be judged on what it was trained on"
            )
        if "list.txt" in lists:
            rows["list.txt"] = _rows(lists, "list.txt", self.url)
        heads = {self.photo_id(path): _head(xml) for path, xml in _read_all(annotations, ".xml")}
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
                official.get(photo_id),
                box if box and min(box) >= 0 else None,
                numbers=self._places(box),
                annotation_size=size if box else None,
            )
        order = sorted(class_ids, key=lambda label: (class_ids[label], label))
        spec = target_spec(self._targets)
        if spec.is_labels:
            return _with_tags(photos, order)
        if spec.geometry is not None:
            return Catalogue(photos, {}, describe_numbers(self._targets, _PLACES[spec.geometry]))
        species_of = {photo.label: photo.species for photo in photos.values()}
        return Catalogue(photos, {label: species_of[label] for label in order})

    def _places(self, box: Box | None) -> tuple[float, ...] | None:
        """What is to be found of a head, pixels."""
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
    """The same photos with their species and breed as tags: kinds of animal first."""
    species = sorted({photo.species for photo in photos.values() if photo.species})
    tagged = {
        photo.id: replace(photo, tags=(*([photo.species] if photo.species else []), photo.label))
        for photo in photos.values()
    }
    return Catalogue(tagged, dict.fromkeys([*species, *breeds]))


def _read_all(files: Files, suffix: str) -> Iterator[tuple[str, bytes]]:
    paths = [
        entry.path for entry in files.entries() if entry.path.endswith(suffix) and not entry.refusal
    ]
    for path, data in zip(paths, files.read(paths), strict=True):
        if isinstance(data, UnreadablePhotoError):
            raise PetsError(f"{path} among the annotations is {data}")
        yield path, data


def _head(xml: bytes) -> tuple[Box | None, tuple[int, int] | None]:
    """The first object's box of a Pascal VOC file, and the photo's size there.

    None where the file has no box that is one; `UNKNOWN_SIZE` where it has none.
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
    # Some tools write 0, which is no size.
    return box, (sides[0], sides[1]) if all(sides) else UNKNOWN_SIZE


def _rows(lists: dict[str, str], name: str, url: str) -> list[tuple[str, str, str, str]]:
    if name not in lists:
        raise PetsError(f"{url}/annotations.tar.gz holds no {name}")
    rows = []
    for number, line in enumerate(lists[name].splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        parts = line.split()
        if len(parts) != 4 or not all(part.isdigit() for part in parts[1:]):
            raise PetsError(
                f'{url}: {name} line {number} is {line!r}, expected "name class species breed"'
            )
        # As names in archives are.
        rows.append((normalize("NFC", parts[0]), parts[1], parts[2], parts[3]))
    return rows


def _class_name(photo_id: str) -> str:
    return " ".join(word.title() for word in photo_id.rsplit("_", 1)[0].split("_"))
