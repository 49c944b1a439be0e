"""What a source says of its photos: labels, official lists, head boxes. The files are `Files`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from itertools import chain
from pathlib import Path, PurePosixPath
from xml.etree.ElementTree import ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from pets_core import storage
from pets_core.config import PipelineConfig
from pets_core.data.archives import ARCHIVE_SUFFIXES, open_archive
from pets_core.data.catalogue import (
    Box,
    Catalogue,
    LabelledPhoto,
    Official,
    Source,
    describe_numbers,
)
from pets_core.data.files import FileEntry, Files, FolderFiles
from pets_core.data.images import UnreadablePhotoError, may_be_photo_name
from pets_core.data.table import TABLE_SUFFIXES, TableSource
from pets_core.download import retrying
from pets_core.errors import PetsError, telling

__all__ = ["AUTHORS_URL", "check_source", "open_photos", "open_source"]

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
        boxes = {
            self.photo_id(path): _head_box(xml) for path, xml in _read_all(annotations, ".xml")
        }
        photos: dict[str, LabelledPhoto] = {}
        class_ids: dict[str, int] = {}
        for photo_id, class_id, species_id, _ in chain.from_iterable(rows.values()):
            label = _class_name(photo_id)
            class_ids.setdefault(label, int(class_id))
            box = boxes.get(photo_id)
            photos[photo_id] = LabelledPhoto(
                photo_id,
                label,
                {"1": "cat", "2": "dog"}.get(species_id),
                official.get(photo_id),
                box if box and min(box) >= 0 else None,
                numbers=self._places(box),
            )
        order = sorted(class_ids, key=lambda label: (class_ids[label], label))
        if self._targets == "tags":
            return _with_tags(photos, order)
        if self._targets in ("points", "box"):
            return Catalogue(photos, {}, describe_numbers(self._targets, _PLACES[self._targets]))
        species_of = {photo.label: photo.species for photo in photos.values()}
        return Catalogue(photos, {label: species_of[label] for label in order})

    def _places(self, box: Box | None) -> tuple[float, ...] | None:
        """What is to be found of a head, pixels."""
        if box is None or self._targets not in ("points", "box"):
            return None
        if self._targets == "box":
            return tuple(map(float, box))
        return (box.xmin + box.xmax) / 2, (box.ymin + box.ymax) / 2

    def _archive(self, name: str) -> Files:
        url = storage.join(self.url, name)
        return open_archive(url, self._cache_dir, self._checksums.get(name, ""))


class ClassFolderSource:
    """Photos in a folder a class, `<class>/**/<photo>`, below a URL or inside an archive."""

    has_official_split = False

    def __init__(self, name: str, url: str, files: Files) -> None:
        self.name, self.url, self.files = name, url, files

    def photo_id(self, path: str) -> str:
        """The path."""
        return path

    def catalogue(self) -> Catalogue:
        """Take each file's first folder as its class; names in sorted order.

        A single folder around all class folders, as archives often have, is passed over, and so
        are hidden files and what macOS puts beside them. A folder in which no file's name may be
        a photo's is no class.
        """
        paths = [PurePosixPath(e.path) for e in self.files.entries() if not e.refusal]
        paths = [path for path in paths if not any(map(_is_hidden, path.parts))]
        likely = [path for path in paths if may_be_photo_name(path.name)]
        depth = 0
        while likely and all(len(path.parts) > depth + 2 for path in likely):
            if len({path.parts[depth] for path in likely}) > 1:
                break
            depth += 1
        classes = {path.parts[depth] for path in likely if len(path.parts) > depth + 1}
        photos = {
            str(path): LabelledPhoto(str(path), path.parts[depth])
            for path in paths
            if len(path.parts) > depth + 1 and path.parts[depth] in classes
        }
        return Catalogue(photos, dict.fromkeys(sorted(classes)))


def _with_tags(photos: dict[str, LabelledPhoto], breeds: list[str]) -> Catalogue:
    """The same photos with their species and breed as tags: kinds of animal first."""
    species = sorted({photo.species for photo in photos.values() if photo.species})
    tagged = {
        photo.id: replace(photo, tags=(*([photo.species] if photo.species else []), photo.label))
        for photo in photos.values()
    }
    return Catalogue(tagged, dict.fromkeys([*species, *breeds]))


def check_source(config: PipelineConfig) -> None:
    """Refuse a path of this machine where nothing lies; nothing else is looked at.

    Raises:
        PetsError: Nothing lies there.
    """
    url = config.source.url
    if url is None or config.source.kind == "sample" or storage.is_url(url):
        return
    if not storage.exists(storage.absolute(url)):
        raise _nothing_at(url)


def _nothing_at(url: str) -> PetsError:
    return PetsError(f"source.url = {url}: no such folder, archive or table")


def open_source(config: PipelineConfig) -> Source:
    """Choose the source the settings ask for; with kind = auto, by what lies at the URL.

    Raises:
        PetsError: Nothing lies at the URL, or nothing this project reads.
    """
    kind, url = config.source.kind, config.source.url
    if kind == "sample" or (kind == "auto" and url is None):
        return _sample(config)
    if kind == "oxford-iiit-pet":
        return _published(config, storage.absolute(url or AUTHORS_URL))
    assert url is not None
    url = storage.absolute(url).rstrip("/")
    name, bare = _named(config, _name(url)), storage.without_query(url).lower()
    with telling(f"source.url = {url}: cannot be reached"):
        if kind == "table" or (kind == "auto" and bare.endswith(TABLE_SUFFIXES)):
            return TableSource(name, url, config)
        packed = bare.endswith(ARCHIVE_SUFFIXES)
        if kind == "auto" and not packed and _is_there(storage.join(url, "images.tar.gz")):
            return _published(config, url)
        if config.source.targets != "class":
            raise PetsError(
                f"source.targets = {config.source.targets}: {url} tells the class of each photo "
                "and nothing else: give a table, with source.label_column for tags or "
                "source.number_columns for numbers"
            )
        if packed:
            file = PurePosixPath(storage.without_query(url)).name
            checksum = config.source.checksums.get(file, "")
            return ClassFolderSource(name, url, open_archive(url, config.cache_dir, checksum))
        return _folder(name, url)


def _named(config: PipelineConfig, name: str) -> str:
    """A data set's name; what is learnt of the same photos besides their class is another one."""
    targets = config.source.targets
    return config.source.name or (name if targets == "class" else f"{name}-{targets}")


def _published(config: PipelineConfig, url: str, name: str = "oxford-iiit-pet") -> OxfordPetSource:
    if config.source.targets == "numbers":
        raise PetsError(
            "source.targets = numbers: the pets' annotations hold none; set tags, points or box, "
            "or give a table with source.number_columns"
        )
    if config.source.number_columns:
        raise PetsError(
            f"source.number_columns = {', '.join(config.source.number_columns)}: {url} is no "
            "table; leave it out"
        )
    return OxfordPetSource(url, config, _named(config, name))


def open_photos(config: PipelineConfig) -> tuple[Files, list[FileEntry]]:
    """The photos of the source the settings ask for, without labels: files, and which of them.

    Every row of a table is one; of a folder or an archive, what is not hidden and whose name may be
    a photo's. Of a path that is there twice, the first counts.

    Raises:
        PetsError: Nothing lies at the URL, or nothing this project reads.
    """
    files, is_table = _open_unlabelled(config)
    photos: dict[str, FileEntry] = {}
    for entry in files.entries():
        hidden = any(map(_is_hidden, entry.path.split("/")))
        if is_table or (not hidden and may_be_photo_name(entry.path)):
            photos.setdefault(entry.path, entry)
    return files, list(photos.values())


def _open_unlabelled(config: PipelineConfig) -> tuple[Files, bool]:
    """The files, and whether a table names them."""
    kind, url = config.source.kind, storage.absolute(config.source.url or "").rstrip("/")
    bare = storage.without_query(url).lower()
    with telling(f"source.url = {url}: cannot be reached"):
        if kind == "table" or (kind == "auto" and bare.endswith(TABLE_SUFFIXES)):
            return TableSource(_name(url), url, config, labelled=False).files, True
        is_folder = kind in ("auto", "folder") and config.source.url and _is_folder(url)
        if is_folder and not _is_there(storage.join(url, "images.tar.gz")):
            return FolderFiles(url), False
    return open_source(config).files, False


def _is_folder(url: str) -> bool:
    fs, root = storage.filesystem(url)
    return bool(retrying(lambda: fs.isdir(root)))


def _sample(config: PipelineConfig) -> OxfordPetSource:
    count, seed = config.source.sample_photos_per_breed, config.source.seed
    folder = Path(config.cache_dir).expanduser() / "sample" / f"v2-{count}-{seed}"
    if not all((folder / f"{part}.tar.gz").exists() for part in ("images", "annotations")):
        from pets_core.data.sample import write_sample

        write_sample(folder, photos_per_breed=count, seed=seed)
    return _published(config, str(folder), "sample")


def _is_there(url: str) -> bool:
    """Whether a file lies at `url`; unlike fsspec's own, it takes no failure for a no."""
    fs, path = storage.filesystem(url)
    try:
        retrying(lambda: fs.info(path))
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _folder(name: str, url: str) -> ClassFolderSource:
    if not _is_folder(url):
        raise _nothing_at(url)
    fs, root = storage.filesystem(url)
    listed = retrying(lambda: fs.ls(root, detail=True))
    if not any(entry["type"] == "directory" for entry in listed):
        raise PetsError(
            f"source.url = {url}: holds neither images.tar.gz with annotations.tar.gz nor a "
            "folder of photos a class"
        )
    return ClassFolderSource(name, url, FolderFiles(url))


def _name(url: str) -> str:
    """A data set's name from its URL: the last part, without the suffixes this project reads."""
    last = PurePosixPath(storage.without_query(url)).name
    for suffix in sorted((*ARCHIVE_SUFFIXES, *TABLE_SUFFIXES), key=len, reverse=True):
        if last.lower().endswith(suffix):
            last = last[: -len(suffix)]
            break
    # Of a folder called "photos [2024]", photos-2024.
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("-._") or "photos"


def _is_hidden(part: str) -> bool:
    return part.startswith(".") or part == "__MACOSX"


def _read_all(files: Files, suffix: str) -> Iterator[tuple[str, bytes]]:
    paths = [
        entry.path
        for entry in files.entries()
        if entry.path.endswith(suffix)
        and not entry.refusal
        and not PurePosixPath(entry.path).name.startswith("._")
    ]
    for path, data in zip(paths, files.read(paths), strict=True):
        if isinstance(data, UnreadablePhotoError):
            raise PetsError(f"{path} among the annotations is {data}")
        yield path, data


def _head_box(xml: bytes) -> Box | None:
    """The first object's box of a Pascal VOC file; None where the file has none that is one."""
    try:
        found = fromstring(xml).find(".//bndbox")
        if found is None:
            return None
        box = Box(*(round(float(found.findtext(field, ""))) for field in Box._fields))
    except (ParseError, DefusedXmlException, ValueError):
        return None
    return box if box.xmin < box.xmax and box.ymin < box.ymax else None


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
        rows.append((parts[0], parts[1], parts[2], parts[3]))
    return rows


def _class_name(photo_id: str) -> str:
    return " ".join(word.title() for word in photo_id.rsplit("_", 1)[0].split("_"))
