"""Open the configured source; source of photos in class folders."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath

from pets_core import storage
from pets_core.config.pipeline import PipelineConfig
from pets_core.config.source import ClassFolder
from pets_core.data.sources.archives import ARCHIVE_SUFFIXES, open_archive
from pets_core.data.sources.catalogue import Catalogue, Source
from pets_core.data.sources.files import FileEntry, Files, FolderFiles
from pets_core.data.sources.folders import read_layout
from pets_core.data.sources.formats import has_photo_suffix, may_be_photo
from pets_core.data.sources.oxford import AUTHORS_URL, OxfordPetSource
from pets_core.data.sources.table import TABLE_SUFFIXES, TableSource
from pets_core.errors import PetsError, wrap_errors
from pets_core.records.target_spec import DEFAULT_TARGET, target_spec
from pets_core.storage.download import call_with_retries

__all__ = ["check_source", "expected_name", "open_photos", "open_source"]


_UNLABELLED_REASONS = frozenset(
    {"hidden", "link", "name_not_utf8", "special_file", "system_folder", "unsafe_path"}
)
"""Skip reasons of files that are ignored when the folder layout is inferred."""


class ClassFolderSource:
    """Photos in class folders, `<class>/**/<photo>`, at a URL or in an archive.

    Class folders inside `train`, `val` and `test` folders have a predefined split.
    """

    def __init__(self, name: str, url: str, files: Files, class_folder: ClassFolder) -> None:
        self.name, self.url, self.files = name, url, files
        self._class_folder = class_folder

    @property
    def has_predefined_split(self) -> bool:
        """Whether the folders define splits."""
        return any(photo.predefined_split for photo in self._catalogue.photos.values())

    def photo_id(self, path: str) -> str:
        """Return the path."""
        return path

    def missing_hint(self, _photo_id: str) -> str:
        """Return no hint: a folder never lists missing photos."""
        return ""

    def catalogue(self) -> Catalogue:
        """Infer labels and splits from the folders. The vocabulary is sorted.

        Raises:
            PetsError: It is ambiguous which folders are the classes.
        """
        return self._catalogue

    @cached_property
    def _catalogue(self) -> Catalogue:
        paths = [e.path for e in self.files.entries() if e.skip_reason not in _UNLABELLED_REASONS]
        return read_layout(paths, self._class_folder)


def check_source(config: PipelineConfig) -> None:
    """Check that a local source path exists. URLs are not checked.

    Raises:
        PetsError: The path does not exist.
    """
    url = config.source.url
    if url is None or config.source.kind == "sample" or storage.is_url(url):
        return
    if not storage.exists(storage.absolute(url)):
        raise _not_found_error(url)


def _not_found_error(url: str) -> PetsError:
    return PetsError(f"source.url = {url}: no such folder, archive or table. Correct source.url")


def expected_name(config: PipelineConfig) -> str:
    """Return the name of the data set as far as it follows from the settings.

    A folder that turns out to be Oxford-IIIT Pet is named so by `open_source`.
    """
    kind, url = config.source.kind, config.source.url
    if kind == "oxford-iiit-pet":
        return _dataset_name(config, kind)
    is_sample = kind == "sample" or url is None
    return _dataset_name(config, "sample" if is_sample else _name(url or ""))


def open_source(config: PipelineConfig, *, has_labels: bool = True) -> Source:
    """Open the configured source. With `source.kind` = auto, detect its kind from the URL.

    Args:
        config: Settings of the source.
        has_labels: Whether to require labels of tables and folders.

    Raises:
        PetsError: The URL does not exist or is not a supported source.
    """
    kind, url = config.source.kind, config.source.url
    if kind == "sample" or (kind == "auto" and url is None):
        return _open_sample(config)
    if kind == "oxford-iiit-pet":
        return _open_oxford(config, storage.absolute(url or AUTHORS_URL))
    assert url is not None
    url = storage.absolute(url).rstrip("/")
    name, bare = _dataset_name(config, _name(url)), storage.strip_query(url).lower()
    with wrap_errors(f"source.url = {url}: cannot be reached"):
        if kind == "table" or (kind == "auto" and bare.endswith(TABLE_SUFFIXES)):
            return TableSource(name, url, config, has_labels=has_labels)
        is_archive = bare.endswith(ARCHIVE_SUFFIXES) and (
            storage.is_http(url) or not _is_folder(url)
        )
        if kind == "auto" and not is_archive and _file_exists(storage.join(url, "images.tar.gz")):
            return _open_oxford(config, url)
        if is_archive:
            file = PurePosixPath(storage.strip_query(url)).name
            checksum = config.source.checksums.get(file, "")
            files = open_archive(url, config.cache_dir, checksum)
            return _open_class_folders(name, url, files, config)
        return _open_folder(name, url, config, has_labels)


def _open_class_folders(
    name: str, url: str, files: Files, config: PipelineConfig
) -> ClassFolderSource:
    if not target_spec(config.source.targets).is_label:
        raise PetsError(
            f"source.targets = {config.source.targets}: the class folders of {url} give each photo "
            "one class. Use a table with source.label_column for tags or source.number_columns for "
            "numbers"
        )
    _check_no_group_column(url, config)
    return ClassFolderSource(name, url, files, config.source.class_folder)


def _dataset_name(config: PipelineConfig, name: str) -> str:
    """Return `source.name`, or else `name` with a suffix for a target other than the class."""
    targets = config.source.targets
    default = name if targets == DEFAULT_TARGET else f"{name}-{targets.replace(':', '.')}"
    return config.source.name or default


def _open_oxford(
    config: PipelineConfig, url: str, name: str = "oxford-iiit-pet"
) -> OxfordPetSource:
    spec = target_spec(config.source.targets)
    if spec.is_numbers and spec.geometry is None:
        raise PetsError(
            f"source.targets = {config.source.targets}: the pet annotations contain none. Set "
            "source.targets = class, tags, points or box, or use a table with source.number_columns"
        )
    if config.source.number_columns:
        raise PetsError(
            f"source.number_columns = {', '.join(config.source.number_columns)}: {url} is not a "
            "table. Remove source.number_columns"
        )
    _check_no_group_column(url, config)
    return OxfordPetSource(url, config, _dataset_name(config, name))


def open_photos(config: PipelineConfig) -> tuple[Files, list[FileEntry], list[FileEntry]]:
    """Open the photos of the configured source without labels.

    If a path occurs twice, the first entry is used.

    Returns:
        The files, the entries that may be photos by their names (all entries of a table), and the
        other entries.

    Raises:
        PetsError: The URL does not exist or is not a supported source.
    """
    source = open_source(config, has_labels=False)
    is_table = isinstance(source, TableSource)
    photos: dict[str, FileEntry] = {}
    others: dict[str, FileEntry] = {}
    for entry in source.files.entries():
        is_other = not may_be_photo(entry.path) or entry.skip_reason in ("hidden", "system_folder")
        group = others if is_other and not is_table else photos
        group.setdefault(entry.path, entry)
    return source.files, list(photos.values()), list(others.values())


def _is_folder(url: str) -> bool:
    fs, root = storage.filesystem(url)
    return bool(call_with_retries(lambda: fs.isdir(root)))


def _open_sample(config: PipelineConfig) -> OxfordPetSource:
    """Open the built-in sample, generating it on first use."""
    count, seed = config.source.sample_photos_per_breed, config.source.seed
    folder = Path(config.cache_dir).expanduser() / "sample" / f"v2-{count}-{seed}"
    if not all((folder / f"{part}.tar.gz").exists() for part in ("images", "annotations")):
        from pets_core.data.sources.sample.sample import write_sample

        write_sample(folder, photos_per_breed=count, seed=seed)
    return _open_oxford(config, str(folder), "sample")


def _file_exists(url: str) -> bool:
    """Whether `url` exists. Unlike fsspec's `exists`, raises an error if access fails."""
    fs, path = storage.filesystem(url)
    try:
        call_with_retries(lambda: fs.info(path))
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _open_folder(name: str, url: str, config: PipelineConfig, has_labels: bool) -> Source:
    """Open a folder with the Parquet shards of one table, or with photos in class folders.

    Without labels, the photos may be in any folders.
    """
    if not _is_folder(url):
        raise _unsupported_type_error(url) if _file_exists(url) else _not_found_error(url)
    files = FolderFiles(url)
    # Tasks that write shards open the source too: avoid a complete listing.
    if has_labels and files.contains(_is_in_class_folder):
        return _open_class_folders(name, url, files, config)
    usable = [entry.path for entry in files.entries() if not entry.skip_reason]
    if shards := _parquet_shards(usable):
        return TableSource(name, url, config, has_labels=has_labels, shards=shards)
    if not has_labels:
        return ClassFolderSource(name, url, files, config.source.class_folder)
    if any(map(has_photo_suffix, usable)) or not any("/" in path for path in usable):
        raise PetsError(
            f"source.url = {url}: contains neither images.tar.gz and annotations.tar.gz, nor class "
            f"folders with photos, nor Parquet shards{_suggest_file(url, usable)}"
        )
    return _open_class_folders(name, url, files, config)


def _is_in_class_folder(path: str) -> bool:
    return "/" in path and has_photo_suffix(path)


def _check_no_group_column(url: str, config: PipelineConfig) -> None:
    if config.source.group_column:
        raise PetsError(
            f"source.group_column = {config.source.group_column}: {url} is not a table. Use "
            "source.group_pattern"
        )


def _unsupported_type_error(url: str) -> PetsError:
    remedy = ""
    if url.lower().endswith((".json", ".jsonl", ".xml")):
        remedy = ". Convert annotations such as COCO or Labelme to a table with one row per photo"
    return PetsError(
        f"source.url = {url}: unsupported file type. Use a folder, an archive "
        f"({', '.join(ARCHIVE_SUFFIXES)}) or a table ({', '.join(TABLE_SUFFIXES)}){remedy}"
    )


def _parquet_shards(paths: Sequence[str]) -> list[str]:
    """Return the Parquet shards in a folder; none if it contains class folders."""
    if any(map(_is_in_class_folder, paths)):
        return []
    return [path for path in paths if path.lower().endswith(".parquet")]


def _suggest_file(url: str, paths: Sequence[str]) -> str:
    """Return a suggestion to use the first archive or table in a folder; empty: there is none."""
    suffixes = (*ARCHIVE_SUFFIXES, *TABLE_SUFFIXES)
    found = next((path for path in sorted(paths) if path.lower().endswith(suffixes)), None)
    return f". Did you mean source.url = {storage.join(url, found)}?" if found else ""


def _name(url: str) -> str:
    """Return a dataset name from the last part of a URL, without archive and table suffixes."""
    last = PurePosixPath(storage.strip_query(url)).name
    for suffix in sorted((*ARCHIVE_SUFFIXES, *TABLE_SUFFIXES), key=len, reverse=True):
        if last.lower().endswith(suffix):
            last = last[: -len(suffix)]
            break
    # "photos [2024]" becomes "photos-2024".
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("-._") or "photos"
