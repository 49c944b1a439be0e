"""A table as the source: a row a photo, with its path or its bytes, and its label."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from pets_core import storage
from pets_core.config.pipeline import PipelineConfig
from pets_core.data.sources.archives import PackedFiles, pack
from pets_core.data.sources.catalogue import Catalogue, LabelledPhoto, Official, describe_numbers
from pets_core.data.sources.files import FileEntry, Files, ListedFiles, size_refusal
from pets_core.data.sources.folders import split_of_path
from pets_core.data.sources.table_columns import TableColumns, Target, class_names
from pets_core.data.sources.text_table import TextOptions, TextTable, open_text_table
from pets_core.errors import PetsError, did_you_mean, listed
from pets_core.records.target_spec import target_spec
from pets_core.storage.download import local_file

__all__ = ["TABLE_SUFFIXES", "TableSource"]

TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")


class TableSource:
    """A CSV or Parquet file, or a folder of Parquet shards, whose rows name photos or hold them.

    The image column holds paths (relative ones to the table's folder) or URLs, or, in Parquet, the
    photos' bytes, also as Hugging Face `datasets` writes them, struct<bytes, path>. The id of a
    photo is its path, or the SHA-256 of its bytes. Shards named as train-00000-of-00002.parquet
    are official splits.

    Args:
        name: Of the data set.
        url: The file, or the folder of the shards.
        config: Names of the columns.
        labelled: Whether there is a column of labels.
        shards: Paths of the shards below the folder; empty: `url` is a file.
    """

    def __init__(
        self,
        name: str,
        url: str,
        config: PipelineConfig,
        *,
        labelled: bool = True,
        shards: Sequence[str] = (),
    ) -> None:
        self.name, self._config, self._labelled = name, config.source, labelled
        # A signed URL is good for fetching, and for nobody to read.
        self.url = storage.without_query(url)
        self._cache_dir = config.cache_dir
        self._is_folder = bool(shards)
        urls = [storage.join(url, shard) for shard in sorted(shards)] or [url]
        checksums = config.source.checksums
        self._paths = [
            local_file(u, config.cache_dir, checksums.get(_file_name(u), "")) for u in urls
        ]
        # The split of each shard; None where its name gives none, and nothing where none does.
        splits = [split_of_path(shard) for shard in sorted(shards)]
        self._shard_splits = splits if any(splits) else []
        self._check_columns()

    @property
    def has_official_split(self) -> bool:
        """Whether a column, or the shards' names, are splits of which one is held out."""
        named = set(filter(None, self._shard_splits))
        return self._config.split_column is not None or len(named) > 1

    def photo_id(self, path: str) -> str:
        """The path."""
        return path

    def missing_hint(self, photo_id: str) -> str:
        """Where a photo was looked for, and a file nearby that may have been meant."""
        fs, place = self._locate(photo_id)
        hint = f"The table is at {self.url}, so the first was looked for at {place}."
        if not storage.is_local(fs):
            return hint
        folder = Path(self._folder)
        stem = PurePosixPath(photo_id).stem
        near = (p for p in sorted(folder.rglob(f"{glob.escape(stem)}*")) if p.is_file())
        if (found := next(near, None)) is None:
            return hint
        return (
            f"{hint} Did you mean {found.relative_to(folder)}? Set source.image_folder and "
            "source.image_suffix, or correct the paths."
        )

    def catalogue(self) -> Catalogue:
        """Take labels, tags or numbers, and splits, from the columns the settings name.

        Labels and tags come in sorted order, those of `source.tag_columns` and numbers in that of
        the settings. A row without a tag is a photo that has none.

        Raises:
            PetsError: Rows have no label, a number that is missing, not finite or outside
                `source.y_range`, or a split that is none.
        """
        settings = self._config
        columns = TableColumns(self._labels, settings, self.url, self._text)
        targets = columns.targets()
        self._check_complete(targets)
        photos: dict[str, LabelledPhoto] = {}
        rows = zip(self._ids, targets, self._splits(columns), columns.groups(), strict=True)
        for number, (photo_id, target, split, group) in enumerate(rows, 1):
            assert photo_id is not None
            photo = replace(self._photo(photo_id, target, split), group=group)
            first = photos.setdefault(photo_id, photo)
            if first != photo:
                raise PetsError(
                    f"{self.url}: row {number} has {photo.target_text!r} ({split or 'no split'}) "
                    f"for {photo_id}, an earlier row {first.target_text!r} "
                    f"({first.official or 'no split'})"
                )
        if not target_spec(settings.targets).is_numbers:
            names = {n for p in photos.values() for n in (p.tags if p.tags else [p.label]) if n}
            vocabulary = settings.tag_columns or sorted(names)
            warnings = columns.warnings(names) + self._encoding_warnings()
            return Catalogue(photos, dict.fromkeys(vocabulary), warnings=warnings)
        numbers = describe_numbers(settings.targets, settings.number_columns, settings.units)
        return Catalogue(photos, {}, numbers)

    def _check_complete(self, targets: Sequence[object]) -> None:
        """Refuse rows without a photo or without a class, all at once."""
        columns = {
            self._config.image_column: [photo_id or "" for photo_id in self._ids],
            self._config.label_column: targets,
        }
        faults = []
        for column, values in columns.items():
            rows = [number for number, value in enumerate(values, 1) if value == ""]
            if rows:
                first = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
                what = f"row {first} has" if len(rows) == 1 else f"{len(rows)} rows ({first}) have"
                faults.append(f"{self.url}: {what} no {column}: fill it in, or remove the row")
        if faults:
            raise PetsError("\n".join(faults))

    def _encoding_warnings(self) -> tuple[str, ...]:
        if self._text is None or self._config.encoding or self._text.format.encoding != "cp1252":
            return ()
        return (
            f"{self.url} is not UTF-8 and was read as cp1252. Where letters are wrong, set "
            "source.encoding.",
        )

    def _splits(self, columns: TableColumns) -> list[Official | None]:
        """The official split of each row: of a column, or of the shards' names."""
        if self._config.split_column or not self.has_official_split:
            return columns.splits()
        has_valid = "valid" in self._shard_splits
        splits: list[Official | None] = []
        for path, named in zip(self._paths, self._shard_splits, strict=True):
            official: Official | None = "trainval" if named == "train" and not has_valid else named
            splits += [official] * pq.read_metadata(path).num_rows
        return splits

    def _photo(self, photo_id: str, target: Target, official: Official | None) -> LabelledPhoto:
        if isinstance(target, str):
            return LabelledPhoto(photo_id, target, official=official)
        if target_spec(self._config.targets).is_labels:
            return LabelledPhoto(
                photo_id, "", official=official, tags=cast(tuple[str, ...], target)
            )
        numbers = cast(tuple[float, ...], target)
        return LabelledPhoto(photo_id, "", official=official, numbers=numbers)

    @cached_property
    def files(self) -> Files:
        """The photos, where the table says they are."""
        if self._packed is not None:
            return self._packed
        self._check_reach()
        return ListedFiles(filter(None, dict.fromkeys(self._ids)), self._locate)

    def _locate(self, path: str) -> tuple[Any, str]:
        """The place of a photo, which the table names by a URL or a path from its own folder."""
        if _is_absolute(path):
            return storage.filesystem(path)
        return storage.below(self._folder, path)

    @property
    def _folder(self) -> str:
        return self.url if self._is_folder else self.url.rsplit("/", 1)[0]

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
        statuses = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in self._paths]
        identity = ("table", *statuses[0], self._config.image_column, *statuses[1:])

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
            for path in self._paths:
                for batch in pq.ParquetFile(path).iter_batches(64, columns=[column]):
                    values = batch.column(column)
                    if pa.types.is_struct(values.type):
                        values = values.field("bytes")
                    for value in values:
                        yield value.as_py() or b""

    @cached_property
    def _ids(self) -> list[str | None]:
        if self._packed is not None:
            return [entry.path for entry in self._packed.entries()]
        named = [_plain(name) for name in self._labels[self._config.image_column].to_pylist()]
        folder, suffix = self._config.image_folder, self._config.image_suffix
        if not (folder or suffix):
            return named
        return [name and (f"{folder}/" if folder else "") + f"{name}{suffix}" for name in named]

    @cached_property
    def _labels(self) -> pa.Table:
        """The columns the settings name, without the photos' bytes."""
        if self._text is not None:
            return self._text.read(list(self._columns))
        names = [*self._columns]
        if self._holds_bytes:
            names.remove(self._config.image_column)
        with self._reading():
            tables = [pq.read_table(path, columns=names) for path in self._paths]
        return self._joined(tables)

    def _joined(self, tables: Sequence[pa.Table]) -> pa.Table:
        """The rows of all shards, whose types and names of classes must agree."""
        label = self._config.label_column
        if self._labelled and label in tables[0].column_names:
            names = {str(class_names(table, label)) for table in tables}
            if len(names) > 1:
                raise PetsError(
                    f"{self.url}: its shards give the classes of {label} different names or "
                    "orders: write them again with the same ones"
                )
        try:
            return pa.concat_tables(tables, promote_options="permissive")
        except pa.ArrowException as error:
            raise PetsError(
                f"{self.url}: its shards have columns of different types ({error}): write them "
                "again with the same ones"
            ) from error

    @cached_property
    def _text(self) -> TextTable | None:
        """The CSV table; None of Parquet."""
        if self.url.lower().endswith(".parquet") or self._paths[0].suffix == ".parquet":
            return None
        settings = self._config
        options = TextOptions(settings.delimiter, settings.encoding, settings.quoting, "source.")
        return open_text_table(self._paths[0], list(self._columns), options=options, url=self.url)

    @cached_property
    def _schema(self) -> pa.Schema:
        if self._text is not None:
            return pa.schema([(name, pa.string()) for name in self._text.names])
        try:
            return pq.read_schema(self._paths[0])
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
    def _columns(self) -> dict[str, str]:
        """The setting that names each column to be read."""
        settings = self._config
        named = {settings.image_column: "image_column"}
        if self._labelled and settings.tag_columns:
            named |= dict.fromkeys(settings.tag_columns, "tag_columns")
        elif self._labelled and not target_spec(settings.targets).is_numbers:
            named[settings.label_column] = "label_column"
        elif self._labelled:
            named |= dict.fromkeys(settings.number_columns, "number_columns")
        if self._labelled and settings.group_column:
            named[settings.group_column] = "group_column"
        if self._labelled and settings.split_column:
            named[settings.split_column] = "split_column"
        return named

    def _check_columns(self) -> None:
        settings, present = self._config, self._schema.names
        # Names may be those of a file that is no table.
        named = listed([name[:40] for name in present], 20)
        geometry = target_spec(settings.targets).geometry
        if self._labelled and geometry is not None and not settings.number_columns:
            raise PetsError(
                f"source.targets = {settings.targets}: {self.url} is a table, so that "
                "source.number_columns must say in which columns the places are"
            )
        faults = [
            f"source.{setting} = {name}: {self.url}{self._format_text} has no such column, only "
            f"{named}.{did_you_mean(name, present)}"
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

    @property
    def _format_text(self) -> str:
        """How a CSV table was read, for messages about columns it lacks."""
        if self._text is None:
            return ""
        return f" (read with {self._text.format}, see source.delimiter and source.encoding)"


def _plain(path: str | None) -> str | None:
    """A path without "." folders and doubled slashes, so that a photo has one id; URLs stay."""
    if path is None or _is_absolute(path) or ("./" not in path and "//" not in path):
        return path
    return "/".join(part for part in path.split("/") if part not in ("", "."))


def _file_name(url: str) -> str:
    return PurePosixPath(storage.without_query(url)).name


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
    return storage.is_url(path) or path.startswith(("/", "file:"))
