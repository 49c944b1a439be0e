"""Where photos come from: each source says what it holds and yields the bytes."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Literal, Protocol

from pets_core import storage
from pets_core.config import PipelineConfig
from pets_core.data.images import is_photo_name
from pets_core.data.sample import write_sample
from pets_core.errors import PetsError

__all__ = ["AUTHORS_URL", "Catalogue", "LabelledPhoto", "Source", "open_source"]

AUTHORS_URL = "https://www.robots.ox.ac.uk/~vgg/data/pets/data"
"""Parkhi, Vedaldi, Zisserman, Jawahar: Cats and Dogs, CVPR 2012."""


@dataclass(frozen=True)
class LabelledPhoto:
    """What a source says of one photo; `official` is None where it publishes no lists."""

    id: str
    label: str
    species: str | None = None
    official: Literal["trainval", "test"] | None = None


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

    def catalogue(self) -> Catalogue:
        """Return labels and vocabulary, without reading the photos."""
        ...

    def read(self) -> Iterator[tuple[str, str, bytes]]:
        """Yield (photo id, path in the source, bytes) of every file, in the source's order.

        Raises:
            PetsError: An archive is cut short or damaged.
        """
        ...


class OxfordPetSource:
    """`images.tar.gz` and `annotations.tar.gz`, as the authors publish them."""

    has_official_split = True

    def __init__(self, url: str, cache_dir: str, name: str = "oxford-iiit-pet") -> None:
        self.name, self.url, self._cache_dir = name, url, cache_dir

    def catalogue(self) -> Catalogue:
        """Read labels from list.txt and the split from trainval.txt and test.txt.

        Raises:
            PetsError: A list is absent or a line is not "name class species breed".
        """
        lists = {
            PurePosixPath(path).name: data.decode(errors="replace")
            for path, data in self._members("annotations.tar.gz", suffix=".txt")
        }
        rows = {name: _rows(lists, name, self.url) for name in ("trainval.txt", "test.txt")}
        official: dict[str, Literal["trainval", "test"]] = {
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
        photos: dict[str, LabelledPhoto] = {}
        class_ids: dict[str, int] = {}
        for photo_id, class_id, species_id, _ in chain.from_iterable(rows.values()):
            label = _class_name(photo_id)
            class_ids.setdefault(label, int(class_id))
            species = {"1": "cat", "2": "dog"}.get(species_id)
            photos[photo_id] = LabelledPhoto(photo_id, label, species, official.get(photo_id))
        order = sorted(class_ids, key=lambda label: (class_ids[label], label))
        species_of = {photo.label: photo.species for photo in photos.values()}
        return Catalogue(photos, {label: species_of[label] for label in order})

    def read(self) -> Iterator[tuple[str, str, bytes]]:
        """Stream the image archive; nothing is unpacked to disk."""
        for path, data in self._members("images.tar.gz"):
            yield PurePosixPath(path).stem, path, data

    def _members(self, archive: str, suffix: str = "") -> Iterator[tuple[str, bytes]]:
        url = storage.join(self.url, archive)
        path = storage.local_file(url, self._cache_dir)
        try:
            with (
                gzip.open(path) as unpacked,
                tarfile.open(fileobj=unpacked, mode="r|") as tar,
            ):
                for member in tar:
                    if member.isfile() and member.name.endswith(suffix):
                        file = tar.extractfile(member)
                        assert file is not None
                        yield member.name, file.read()
                # tarfile takes a header cut short for the end; gzip's own end tells.
                while unpacked.read(1 << 20):
                    pass
        except (EOFError, tarfile.TarError, zlib.error, OSError) as error:
            storage.forget_download(path, self._cache_dir)
            raise PetsError(f"{url} is cut short or damaged ({error}): fetch it again") from error


class FolderSource:
    """A folder of photos a class: `<url>/<class>/**/<photo>`."""

    has_official_split = False

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.name = PurePosixPath(self.url).name or "photos"

    def catalogue(self) -> Catalogue:
        """Take each file's first folder as its class; names in sorted order."""
        labels = {path: PurePosixPath(path).parts[0] for path in self._paths()}
        photos = {
            path: LabelledPhoto(path, label)
            for path, label in labels.items()
            if is_photo_name(PurePosixPath(path).name)
        }
        return Catalogue(photos, dict.fromkeys(sorted(set(labels.values()))))

    def read(self) -> Iterator[tuple[str, str, bytes]]:
        """Yield every file below a class folder, sorted by path."""
        for path in self._paths():
            yield path, path, storage.read_bytes(storage.join(self.url, path))

    def _paths(self) -> list[str]:
        fs, root = storage.filesystem(self.url)
        relative = (path[len(root) :].lstrip("/") for path in fs.find(root))
        return sorted(
            path
            for path in relative
            if "/" in path and not any(part.startswith(".") for part in path.split("/"))
        )


def open_source(config: PipelineConfig) -> Source:
    """Choose the source the settings ask for; with kind = auto, by what lies at the URL.

    Raises:
        PetsError: Nothing lies at the URL, or nothing this project reads.
    """
    kind, url = config.source.kind, config.source.url
    if kind == "sample" or (kind == "auto" and url is None):
        return _sample(config)
    if kind == "oxford-iiit-pet":
        return OxfordPetSource(storage.absolute(url or AUTHORS_URL), config.cache_dir)
    assert url is not None
    url = storage.absolute(url)
    try:
        if kind == "auto" and storage.exists(storage.join(url, "images.tar.gz")):
            return OxfordPetSource(url, config.cache_dir)
        return _folder(url)
    except PetsError:
        raise
    except Exception as error:
        raise PetsError(
            f"source.url = {url}: cannot be reached ({type(error).__name__}: {error})"
        ) from error


def _sample(config: PipelineConfig) -> OxfordPetSource:
    count, seed = config.source.sample_photos_per_breed, config.source.seed
    folder = Path(config.cache_dir).expanduser() / "sample" / f"v1-{count}-{seed}"
    if not all((folder / f"{part}.tar.gz").exists() for part in ("images", "annotations")):
        write_sample(folder, photos_per_breed=count, seed=seed)
    return OxfordPetSource(str(folder), config.cache_dir, name="sample")


def _folder(url: str) -> FolderSource:
    fs, root = storage.filesystem(url)
    if not fs.isdir(root):
        raise PetsError(f"source.url = {url}: no such folder")
    if not any(entry["type"] == "directory" for entry in fs.ls(root, detail=True)):
        raise PetsError(
            f"source.url = {url}: holds neither images.tar.gz with annotations.tar.gz nor a "
            "folder of photos a class"
        )
    return FolderSource(url)


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
