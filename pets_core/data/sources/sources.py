"""Which source the settings mean, and photos in a folder a class. The files are `Files`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath

from pets_core import storage
from pets_core.config.pipeline import PipelineConfig
from pets_core.config.source import ClassFolder
from pets_core.data.sources.archives import ARCHIVE_SUFFIXES, open_archive
from pets_core.data.sources.catalogue import (
    Catalogue,
    LabelledPhoto,
    Source,
)
from pets_core.data.sources.files import FileEntry, Files, FolderFiles
from pets_core.data.sources.folders import FolderLayout, read_layout
from pets_core.data.sources.formats import is_named_as_photo, may_be_photo
from pets_core.data.sources.oxford import AUTHORS_URL, OxfordPetSource
from pets_core.data.sources.table import TABLE_SUFFIXES, TableSource
from pets_core.errors import PetsError, explain_full_disk, telling
from pets_core.records.target_spec import DEFAULT_TARGET, target_spec
from pets_core.storage.download import retrying

__all__ = ["check_source", "open_photos", "open_source"]


_NO_LABEL = frozenset(
    {"hidden", "link", "name_not_utf8", "special_file", "system_folder", "unsafe_path"}
)
"""Files whose folder says nothing about the classes."""


class ClassFolderSource:
    """Photos in a folder a class, `<class>/**/<photo>`, below a URL or inside an archive.

    The class folders may lie in `train`, `val` and `test`, which are then the official split.
    """

    def __init__(self, name: str, url: str, files: Files, class_folder: ClassFolder) -> None:
        self.name, self.url, self.files = name, url, files
        self._class_folder = class_folder

    @property
    def has_official_split(self) -> bool:
        """Whether the folders are splits."""
        return bool(self._layout.official)

    def photo_id(self, path: str) -> str:
        """The path."""
        return path

    def missing_hint(self, _photo_id: str) -> str:
        """A folder lists no photo that it does not hold."""
        return ""

    def catalogue(self) -> Catalogue:
        """Take classes and splits from the folders, classes in sorted order.

        Raises:
            PetsError: Which folders are the classes is ambiguous.
        """
        layout = self._layout
        photos = {
            path: LabelledPhoto(path, label, official=layout.official.get(path))
            for path, label in layout.labels.items()
        }
        classes = sorted(set(layout.labels.values()))
        return Catalogue(
            photos, dict.fromkeys(classes), warnings=layout.warnings, skipped=layout.skipped
        )

    @cached_property
    def _layout(self) -> FolderLayout:
        paths = [e.path for e in self.files.entries() if e.refusal not in _NO_LABEL]
        return read_layout(paths, self._class_folder)


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
        if packed:
            file = PurePosixPath(storage.without_query(url)).name
            checksum = config.source.checksums.get(file, "")
            return _class_folders(name, url, open_archive(url, config.cache_dir, checksum), config)
        return _folder(name, url, config)


def _class_folders(name: str, url: str, files: Files, config: PipelineConfig) -> ClassFolderSource:
    if not target_spec(config.source.targets).is_label:
        raise PetsError(
            f"source.targets = {config.source.targets}: the folders of {url} give each photo a "
            "class and nothing else: give a table, with source.label_column for tags or "
            "source.number_columns for numbers"
        )
    _refuse_group_column(url, config)
    return ClassFolderSource(name, url, files, config.source.class_folder)


def _named(config: PipelineConfig, name: str) -> str:
    """A data set's name; what is learnt of the same photos besides their class is another one."""
    targets = config.source.targets
    own = name if targets == DEFAULT_TARGET else f"{name}-{targets.replace(':', '.')}"
    return config.source.name or own


def _published(config: PipelineConfig, url: str, name: str = "oxford-iiit-pet") -> OxfordPetSource:
    spec = target_spec(config.source.targets)
    if spec.is_numbers and spec.geometry is None:
        raise PetsError(
            f"source.targets = {config.source.targets}: the pets' annotations hold none; set tags, "
            "points or box, or give a table with source.number_columns"
        )
    if config.source.number_columns:
        raise PetsError(
            f"source.number_columns = {', '.join(config.source.number_columns)}: {url} is no "
            "table; leave it out"
        )
    _refuse_group_column(url, config)
    return OxfordPetSource(url, config, _named(config, name))


def open_photos(config: PipelineConfig) -> tuple[Files, list[FileEntry], list[FileEntry]]:
    """The photos of the source the settings ask for, without labels.

    Of a path that is there twice, the first counts.

    Returns:
        The files; those of them that are photos by their names, in a table all; and the others.

    Raises:
        PetsError: Nothing lies at the URL, or nothing this project reads.
    """
    files, is_table = _open_unlabelled(config)
    photos: dict[str, FileEntry] = {}
    others: dict[str, FileEntry] = {}
    for entry in files.entries():
        is_other = not may_be_photo(entry.path) or entry.refusal in ("hidden", "system_folder")
        kind = others if is_other and not is_table else photos
        kind.setdefault(entry.path, entry)
    return files, list(photos.values()), list(others.values())


def _open_unlabelled(config: PipelineConfig) -> tuple[Files, bool]:
    """The files, and whether a table names them."""
    kind, url = config.source.kind, storage.absolute(config.source.url or "").rstrip("/")
    bare = storage.without_query(url).lower()
    with telling(f"source.url = {url}: cannot be reached"):
        if kind == "table" or (kind == "auto" and bare.endswith(TABLE_SUFFIXES)):
            return TableSource(_name(url), url, config, labelled=False).files, True
        is_folder = kind in ("auto", "folder") and config.source.url and _is_folder(url)
        if is_folder and not _is_there(storage.join(url, "images.tar.gz")):
            files = FolderFiles(url)
            shards = _shards([entry.path for entry in files.entries() if not entry.refusal])
            if shards:
                table = TableSource(_name(url), url, config, labelled=False, shards=shards)
                return table.files, True
            return files, False
    return open_source(config).files, False


def _is_folder(url: str) -> bool:
    fs, root = storage.filesystem(url)
    return bool(retrying(lambda: fs.isdir(root)))


def _sample(config: PipelineConfig) -> OxfordPetSource:
    count, seed = config.source.sample_photos_per_breed, config.source.seed
    folder = Path(config.cache_dir).expanduser() / "sample" / f"v2-{count}-{seed}"
    if not all((folder / f"{part}.tar.gz").exists() for part in ("images", "annotations")):
        from pets_core.data.sources.sample.sample import write_sample

        with explain_full_disk(str(folder), "cache_dir"):
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


def _folder(name: str, url: str, config: PipelineConfig) -> Source:
    """A folder of class folders, or of the Parquet shards of one table."""
    if not _is_folder(url):
        raise _unknown_type(url) if _is_there(url) else _nothing_at(url)
    files = FolderFiles(url)
    # The tasks that write shards open the source as well, and need no listing of it.
    if files.holds(_lies_in_class_folder):
        return _class_folders(name, url, files, config)
    usable = [entry.path for entry in files.entries() if not entry.refusal]
    if shards := _shards(usable):
        return TableSource(name, url, config, shards=shards)
    if any(map(is_named_as_photo, usable)) or not any("/" in path for path in usable):
        raise PetsError(
            f"source.url = {url}: holds neither images.tar.gz with annotations.tar.gz, nor a "
            f"folder of photos a class, nor Parquet shards{_also(url, usable)}"
        )
    return _class_folders(name, url, files, config)


def _lies_in_class_folder(path: str) -> bool:
    return "/" in path and is_named_as_photo(path)


def _refuse_group_column(url: str, config: PipelineConfig) -> None:
    if config.source.group_column:
        raise PetsError(
            f"source.group_column = {config.source.group_column}: {url} is not a table: set "
            "source.group_pattern"
        )


def _unknown_type(url: str) -> PetsError:
    remedy = ""
    if url.lower().endswith((".json", ".jsonl", ".xml")):
        remedy = ". Convert annotations, as of COCO or Labelme, to a table with a row a photo"
    return PetsError(
        f"source.url = {url}: this type of file is not supported. A source is a folder, an archive "
        f"({', '.join(ARCHIVE_SUFFIXES)}) or a table ({', '.join(TABLE_SUFFIXES)}){remedy}"
    )


def _shards(paths: Sequence[str]) -> list[str]:
    """The Parquet shards of a folder that holds no folders of photos."""
    if any(map(_lies_in_class_folder, paths)):
        return []
    return [path for path in paths if path.lower().endswith(".parquet")]


def _also(url: str, paths: Sequence[str]) -> str:
    """The archive or table in a folder that may have been meant."""
    suffixes = (*ARCHIVE_SUFFIXES, *TABLE_SUFFIXES)
    meant = next((path for path in sorted(paths) if path.lower().endswith(suffixes)), None)
    return f". Set source.url to {storage.join(url, meant)}, if you mean that" if meant else ""


def _name(url: str) -> str:
    """A data set's name from its URL: the last part, without the suffixes this project reads."""
    last = PurePosixPath(storage.without_query(url)).name
    for suffix in sorted((*ARCHIVE_SUFFIXES, *TABLE_SUFFIXES), key=len, reverse=True):
        if last.lower().endswith(suffix):
            last = last[: -len(suffix)]
            break
    # Of a folder called "photos [2024]", photos-2024.
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("-._") or "photos"
