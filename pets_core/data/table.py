"""A table as the source: a row a photo, with its path or its bytes, and its label."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from hashlib import sha256
from pathlib import PurePosixPath
from typing import IO, Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from pets_core import storage
from pets_core.config import PipelineConfig
from pets_core.data.archives import PackedFiles, pack
from pets_core.data.catalogue import Catalogue, LabelledPhoto, Official, describe_numbers
from pets_core.data.files import FileEntry, Files, ListedFiles, size_refusal
from pets_core.download import local_file
from pets_core.errors import PetsError, did_you_mean

__all__ = ["TABLE_SUFFIXES", "TableSource"]

TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")

_OFFICIAL: dict[str, Official] = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "validation": "valid",
    "val": "valid",
    "test": "test",
    "trainval": "trainval",
}


class TableSource:
    """A CSV or Parquet file whose rows name photos, or hold them.

    The image column holds paths (relative ones to the table's folder) or URLs, or, in Parquet, the
    photos' bytes, also as Hugging Face `datasets` writes them, struct<bytes, path>. The id of a
    photo is its path, or the SHA-256 of its bytes.

    Args:
        name: Of the data set.
        url: The file.
        config: Names of the columns.
        labelled: Whether there is a column of labels.
    """

    def __init__(
        self, name: str, url: str, config: PipelineConfig, *, labelled: bool = True
    ) -> None:
        self.name, self._config, self._labelled = name, config.source, labelled
        # A signed URL is good for fetching, and for nobody to read.
        self.url = storage.without_query(url)
        checksum = config.source.checksums.get(PurePosixPath(self.url).name, "")
        self._path = local_file(url, config.cache_dir, checksum)
        self._cache_dir = config.cache_dir
        self.has_official_split = self._config.split_column is not None
        self._check_columns()

    def photo_id(self, path: str) -> str:
        """The path."""
        return path

    def catalogue(self) -> Catalogue:
        """Take labels, tags or numbers, and splits, from the columns the settings name.

        Labels and tags come in sorted order, numbers in that of `source.number_columns`. A row
        without a tag is a photo that has none.

        Raises:
            PetsError: A row has no label, a number that is missing, not finite or outside
                `source.y_range`, or a split that is none.
        """
        table, settings = self._labels, self._config
        splits = [None] * table.num_rows
        if settings.split_column:
            splits = table[settings.split_column].to_pylist()
        photos: dict[str, LabelledPhoto] = {}
        for number, (photo_id, said, split) in enumerate(
            zip(self._ids, self._said(table), splits, strict=True), 1
        ):
            if not photo_id or said == "":
                lacking = settings.label_column if photo_id else settings.image_column
                raise PetsError(f"{self.url}: row {number} has no {lacking}")
            photo = self._photo(photo_id, said, self._official(split, number))
            first = photos.setdefault(photo_id, photo)
            if first != photo:
                raise PetsError(
                    f"{self.url}: row {number} says of {photo_id} {_told(photo)} "
                    f"({split or 'no split'}), an earlier row {_told(first)} "
                    f"({first.official or 'no split'})"
                )
        if settings.targets in ("class", "tags"):
            names = {n for p in photos.values() for n in (p.tags if p.tags else [p.label]) if n}
            return Catalogue(photos, dict.fromkeys(sorted(names)))
        numbers = describe_numbers(settings.targets, settings.number_columns, settings.units)
        return Catalogue(photos, {}, numbers)

    def _said(self, table: pa.Table) -> Iterator[str | tuple[str, ...] | tuple[float, ...]]:
        """What is learnt of each row's photo; an empty text where a class is missing."""
        settings = self._config
        if settings.targets == "class":
            yield from (label or "" for label in _names(table, settings.label_column))
        elif settings.targets == "tags":
            yield from _tags(table, settings.label_column, settings.tag_separator)
        else:
            columns = [table[name].to_pylist() for name in settings.number_columns]
            for number, values in enumerate(zip(*columns, strict=True), 1):
                yield tuple(
                    self._number(name, value, number)
                    for name, value in zip(settings.number_columns, values, strict=True)
                )

    def _photo(
        self, photo_id: str, said: str | tuple[Any, ...], official: Official | None
    ) -> LabelledPhoto:
        if isinstance(said, str):
            return LabelledPhoto(photo_id, said, official=official)
        if self._config.targets == "tags":
            return LabelledPhoto(photo_id, "", official=official, tags=said)
        return LabelledPhoto(photo_id, "", official=official, numbers=said)

    def _number(self, column: str, value: Any, number: int) -> float:
        """A cell as a number.

        Raises:
            PetsError: It is missing, no finite number, or outside `source.y_range`.
        """
        place = f"{self.url}: row {number} has {column} = {value!r}"
        if value is None or value == "":
            raise PetsError(
                f"{self.url}: row {number} has no {column}: fill it in, or leave it out"
            )
        try:
            found = float(value)
        except (TypeError, ValueError):
            raise PetsError(f"{place}, which is no number") from None
        if not math.isfinite(found):
            raise PetsError(f"{place}, expected a finite number")
        low, high = self._config.y_range or (-math.inf, math.inf)
        if not low <= found <= high:
            raise PetsError(f"{place}, outside source.y_range = ({low:g}, {high:g}): mend either")
        return found

    @cached_property
    def files(self) -> Files:
        """The photos, where the table says they are."""
        if self._packed is not None:
            return self._packed
        base = self.url.rsplit("/", 1)[0]
        self._check_reach()
        return ListedFiles(
            {path: path if _is_absolute(path) else storage.join(base, path)
             for path in self._ids if path}
        )  # fmt: skip

    def _check_reach(self) -> None:
        """A table from elsewhere must not bring this machine's files into the store."""
        if storage.is_local(storage.filesystem(self.url)[0]):
            return
        for path in self._ids:
            if path and (path.startswith(("/", "file:")) or ".." in path.split("/")):
                raise PetsError(
                    f"{self.url} names {path}: a remote table may name URLs and what lies beside "
                    "it, no local file; copy the table here if you trust it"
                )

    @cached_property
    def _packed(self) -> PackedFiles | None:
        """The photos of a table that holds their bytes."""
        if not self._holds_bytes:
            return None
        status, column = self._path.stat(), self._config.image_column
        identity = ("table", str(self._path), status.st_size, status.st_mtime_ns, column)

        def members(sink: IO[bytes]) -> Iterator[tuple[FileEntry, int]]:
            offset = 0
            seen: Counter[str] = Counter()
            for number, data in enumerate(self._contents(), 1):
                digest = sha256(data).hexdigest()
                sink.write(data)
                if data:
                    seen[digest] += 1
                    # The same photo in two rows is a duplicate, for the checks to tell.
                    path = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
                    mark = f"sha256:{digest}"
                    yield FileEntry(path, len(data), mark, size_refusal(len(data))), offset
                else:
                    # Two rows without a photo are not the same photo.
                    yield FileEntry(f"row {number}", 0, digest, "empty"), offset
                offset += len(data)

        return pack(identity, self._cache_dir, members)

    def _contents(self) -> Iterator[bytes]:
        column = self._config.image_column
        with self._reading():
            for batch in pq.ParquetFile(self._path).iter_batches(64, columns=[column]):
                values = batch.column(column)
                if pa.types.is_struct(values.type):
                    values = values.field("bytes")
                for value in values:
                    yield value.as_py() or b""

    @cached_property
    def _ids(self) -> list[str | None]:
        if self._packed is not None:
            return [entry.path for entry in self._packed.entries()]
        return self._labels[self._config.image_column].to_pylist()  # type: ignore[no-any-return]

    @cached_property
    def _labels(self) -> pa.Table:
        """The columns the settings name, without the photos' bytes."""
        if self._is_csv:
            return self._csv
        names = [*self._columns]
        if self._holds_bytes:
            names.remove(self._config.image_column)
        with self._reading():
            return pq.read_table(self._path, columns=names)

    @cached_property
    def _csv(self) -> pa.Table:
        options = pa.csv.ParseOptions(delimiter="\t" if self.url.lower().endswith(".tsv") else ",")
        try:
            names = pa.csv.open_csv(self._path, parse_options=options).schema.names
            # All text: a label 01 must not become 1, nor NA nothing.
            convert = pa.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
            return pa.csv.read_csv(self._path, parse_options=options, convert_options=convert)
        except (pa.ArrowInvalid, UnicodeDecodeError) as error:
            raise PetsError(f"{self.url} is no CSV table: {error}") from error

    @cached_property
    def _schema(self) -> pa.Schema:
        if self._is_csv:
            return self._csv.schema
        try:
            return pq.read_schema(self._path)
        except (pa.ArrowInvalid, OSError) as error:
            raise PetsError(f"{self.url} is no Parquet file: {error}") from error

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowInvalid, OSError) as error:
            raise PetsError(f"{self.url} is damaged: {error}") from error

    @property
    def _holds_bytes(self) -> bool:
        return not _is_text(self._schema.field(self._config.image_column).type)

    @property
    def _is_csv(self) -> bool:
        return not self.url.lower().endswith(".parquet")

    @property
    def _columns(self) -> dict[str, str]:
        """The setting that names each column to be read."""
        settings = self._config
        named = {settings.image_column: "image_column"}
        if self._labelled and settings.targets in ("class", "tags"):
            named[settings.label_column] = "label_column"
        elif self._labelled:
            named |= dict.fromkeys(settings.number_columns, "number_columns")
        if self._labelled and settings.split_column:
            named[settings.split_column] = "split_column"
        return named

    def _check_columns(self) -> None:
        settings, present = self._config, self._schema.names
        if self._labelled and settings.targets in ("points", "box") and not settings.number_columns:
            raise PetsError(
                f"source.targets = {settings.targets}: {self.url} is a table, so that "
                "source.number_columns must say in which columns the places are"
            )
        faults = [
            f"source.{setting} = {name}: {self.url} has no such column, only "
            f"{', '.join(present)}.{did_you_mean(name, present)}"
            for name, setting in self._columns.items()
            if name not in present
        ] + [
            f"source.{setting} = {name}: {self.url} has {present.count(name)} such columns: rename "
            "all but one"
            for name, setting in self._columns.items()
            if present.count(name) > 1
        ]
        if not faults and not _is_image(self._schema.field(self._config.image_column).type):
            column = self._schema.field(self._config.image_column)
            faults.append(
                f"source.image_column = {column.name}: {self.url} has {column.type} there, "
                "expected text (paths or URLs), binary or struct<bytes, path>"
            )
        if faults:
            raise PetsError("\n".join(faults))

    def _official(self, split: str | None, number: int) -> Official | None:
        if split is None:
            return None
        official = _OFFICIAL.get(str(split).lower())
        if official is None:
            raise PetsError(
                f"{self.url}: row {number} has {self._config.split_column} = {split!r}, expected "
                "train, valid, test or trainval"
            )
        return official


def _names(table: pa.Table, column: str) -> list[str | None]:
    """Labels as text; where Hugging Face's metadata name the classes, by these names."""
    names = _class_names(table, column)
    return [_name_of(value, names) for value in table[column].to_pylist()]


def _tags(table: pa.Table, column: str, separator: str | None) -> Iterator[tuple[str, ...]]:
    """The tags of each row, each once, in sorted order: of a list, or of text with separators."""
    names = _class_names(table, column)
    for value in table[column].to_pylist():
        listed = value
        if value is None or isinstance(value, str):
            listed = (value or "").split(separator)
        elif not isinstance(value, list):
            # A column of labels: one tag each.
            listed = [value]
        tags = {(_name_of(tag, names) or "").strip() for tag in listed}
        yield tuple(sorted(tags - {""}))


def _name_of(value: Any, names: dict[int, str] | None) -> str | None:
    if names:
        # -1 is how Hugging Face says that a row has no label.
        return names.get(value)
    return None if value is None else str(value)


def _class_names(table: pa.Table, column: str) -> dict[int, str] | None:
    """Names by index that Hugging Face's metadata give a column of labels, or of lists of them."""
    metadata = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
    feature = metadata.get("info", {}).get("features", {}).get(column, {})
    if isinstance(feature, list):
        (feature,) = feature
    if isinstance(feature, dict):
        feature = feature.get("feature", feature)
    names = feature.get("names") if isinstance(feature, dict) else None
    return dict(enumerate(names)) if names else None


def _told(photo: LabelledPhoto) -> str:
    """What a row says of its photo."""
    if photo.label:
        return repr(photo.label)
    told = photo.tags if photo.numbers is None else photo.numbers
    return repr(", ".join(map(str, told)))


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_image(kind: pa.DataType) -> bool:
    if _is_text(kind):
        return True
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_absolute(path: str) -> bool:
    return "://" in path or path.startswith("/")
