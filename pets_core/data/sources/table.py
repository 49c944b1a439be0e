"""Source that is a CSV or Parquet table with one row per photo."""

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
from pets_core.data.sources.archives import PackedFiles, open_packed
from pets_core.data.sources.catalogue import (
    Catalogue,
    LabelledPhoto,
    PredefinedSplit,
    describe_numbers,
)
from pets_core.data.sources.files import (
    FileEntry,
    Files,
    ListedFiles,
    refuse_local_files,
    size_skip_reason,
)
from pets_core.data.sources.folders import split_of_path
from pets_core.data.sources.table_columns import (
    TableColumns,
    TargetValue,
    class_names,
    is_image_type,
    is_text_type,
)
from pets_core.data.sources.text_table import TextOptions, TextTable, open_text_table
from pets_core.errors import PetsError, did_you_mean, format_list
from pets_core.records.target_spec import target_spec
from pets_core.storage.download import local_file

__all__ = ["TABLE_SUFFIXES", "TableSource"]

TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")


class TableSource:
    """A CSV or Parquet file, or a folder of Parquet shards, with one row per photo.

    The image column contains paths (absolute, or relative to the table's folder), URLs, or in
    Parquet the encoded photos as binary or as struct<bytes, path> (Hugging Face `datasets`). The
    id of a photo is its path, or the SHA-256 of its bytes. Shards named like
    train-00000-of-00002.parquet are predefined splits.

    Args:
        name: Name of the dataset.
        url: URL of the file, or of the folder with the shards.
        config: Settings with the names of the columns.
        has_labels: Whether to require the columns of labels, groups and splits.
        shards: Paths of the shards in the folder; empty: `url` is a file.
    """

    def __init__(
        self,
        name: str,
        url: str,
        config: PipelineConfig,
        *,
        has_labels: bool = True,
        shards: Sequence[str] = (),
    ) -> None:
        self.name, self._config, self._has_labels = name, config.source, has_labels
        # The query of a signed URL is a secret: never show it.
        self.url = storage.strip_query(url)
        self._cache_dir = config.cache_dir
        self._is_folder = bool(shards)
        urls = [storage.join(url, shard) for shard in sorted(shards)] or [url]
        checksums = config.source.checksums
        self._paths = [
            local_file(u, config.cache_dir, checksums.get(_file_name(u), "")) for u in urls
        ]
        # Split that the name of each shard contains, or None; empty if no name contains one.
        splits = [split_of_path(shard) for shard in sorted(shards)]
        self._shard_splits = splits if any(splits) else []
        self._check_columns()

    @property
    def has_predefined_split(self) -> bool:
        """Whether a column defines the splits, or the names of the shards define several."""
        named = set(filter(None, self._shard_splits))
        return self._config.split_column is not None or len(named) > 1

    def photo_id(self, path: str) -> str:
        """Return the path."""
        return path

    def missing_hint(self, photo_id: str) -> str:
        """Return where a missing photo was expected, and a similar file if there is one."""
        fs, location = self._locate(photo_id)
        hint = f"The table is at {self.url}, so the first photo was expected at {location}."
        if not storage.is_local(fs):
            return hint
        folder = Path(self._folder)
        stem = PurePosixPath(photo_id).stem
        similar = (p for p in sorted(folder.rglob(f"{glob.escape(stem)}*")) if p.is_file())
        if (found := next(similar, None)) is None:
            return hint
        return (
            f"{hint} Did you mean {found.relative_to(folder)}? Set source.image_folder and "
            "source.image_suffix, or correct the paths."
        )

    def catalogue(self) -> Catalogue:
        """Read labels, tags or numbers, groups and splits from the configured columns.

        Classes and tags are sorted; `source.tag_columns` and `source.number_columns` keep their
        order. A row without tags is a photo without tags.

        Raises:
            PetsError: Rows lack a photo, label or group; a number is missing, not finite or
                outside `source.y_range`; a split is unknown; or rows of a photo contradict.
        """
        settings = self._config
        columns = TableColumns(self._table, settings, self.url, self._text)
        targets = columns.targets()
        self._check_complete(targets)
        photos: dict[str, LabelledPhoto] = {}
        rows = zip(self._ids, targets, self._splits(columns), columns.groups(), strict=True)
        for number, (photo_id, target, split, group) in enumerate(rows, 1):
            assert photo_id is not None
            photo = replace(self._make_photo(photo_id, target, split), group=group)
            first = photos.setdefault(photo_id, photo)
            if first != photo:
                raise PetsError(
                    f"{self.url}: row {number} has {photo.target_text!r} ({split or 'no split'}) "
                    f"for {photo_id}, but an earlier row has {first.target_text!r} "
                    f"({first.predefined_split or 'no split'}). Remove one of the rows"
                )
        if not target_spec(settings.targets).is_numbers:
            names = {n for p in photos.values() for n in (p.tags if p.tags else [p.label]) if n}
            vocabulary = settings.tag_columns or sorted(names)
            warnings = columns.warnings(names) + self._encoding_warnings()
            return Catalogue(photos, dict.fromkeys(vocabulary), warnings=warnings)
        numbers = describe_numbers(settings.targets, settings.number_columns, settings.units)
        return Catalogue(photos, {}, numbers)

    def _check_complete(self, targets: Sequence[object]) -> None:
        """Check that all rows have a photo and a label. Reports both errors at once."""
        columns = {
            self._config.image_column: [photo_id or "" for photo_id in self._ids],
            self._config.label_column: targets,
        }
        errors = []
        for column, values in columns.items():
            rows = [number for number, value in enumerate(values, 1) if value == ""]
            if rows:
                first = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
                have = f"row {first} has" if len(rows) == 1 else f"{len(rows)} rows ({first}) have"
                errors.append(f"{self.url}: {have} no {column}. Add a value or remove the row")
        if errors:
            raise PetsError("\n".join(errors))

    def _encoding_warnings(self) -> tuple[str, ...]:
        if self._text is None or self._config.encoding or self._text.format.encoding != "cp1252":
            return ()
        return (
            f"{self.url} is not UTF-8 and was read as cp1252. If characters are wrong, set "
            "source.encoding.",
        )

    def _splits(self, columns: TableColumns) -> list[PredefinedSplit | None]:
        """Return the predefined split of each row, from a column or the names of the shards."""
        if self._config.split_column or not self.has_predefined_split:
            return columns.splits()
        has_valid = "valid" in self._shard_splits
        splits: list[PredefinedSplit | None] = []
        for path, split in zip(self._paths, self._shard_splits, strict=True):
            is_trainval = split == "train" and not has_valid
            splits += ["trainval" if is_trainval else split] * pq.read_metadata(path).num_rows
        return splits

    def _make_photo(
        self, photo_id: str, target: TargetValue, split: PredefinedSplit | None
    ) -> LabelledPhoto:
        if isinstance(target, str):
            return LabelledPhoto(photo_id, target, predefined_split=split)
        photo = LabelledPhoto(photo_id, "", predefined_split=split)
        if target_spec(self._config.targets).is_labels:
            return replace(photo, tags=cast(tuple[str, ...], target))
        return replace(photo, numbers=cast(tuple[float, ...], target))

    @cached_property
    def files(self) -> Files:
        """Photos stored in the table, or at the paths and URLs that it lists."""
        if self._packed is not None:
            return self._packed
        if not storage.is_local(storage.filesystem(self.url)[0]):
            refuse_local_files(self.url, filter(None, self._ids))
        return ListedFiles(filter(None, dict.fromkeys(self._ids)), self._locate)

    def _locate(self, path: str) -> tuple[Any, str]:
        """Return file system and location of a photo. Relative paths are in the table's folder."""
        if _is_absolute(path):
            return storage.filesystem(path)
        return storage.resolve_file(self._folder, path)

    @property
    def _folder(self) -> str:
        return self.url if self._is_folder else self.url.rsplit("/", 1)[0]

    @cached_property
    def _packed(self) -> PackedFiles | None:
        """Photos stored in the table as bytes; None: it lists paths or URLs."""
        if not self._has_image_bytes:
            return None
        statuses = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in self._paths]
        identity = ("table", *statuses[0], self._config.image_column, *statuses[1:])

        def members(sink: IO[bytes]) -> Iterator[tuple[FileEntry, int]]:
            offset = 0
            seen: Counter[str] = Counter()
            for number, data in enumerate(self._iter_image_bytes(), 1):
                digest = sha256(data).hexdigest()
                sink.write(data)
                if data:
                    seen[digest] += 1
                    # Give equal photos different ids: the duplicate check reports them.
                    path = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
                    reason = size_skip_reason(len(data))
                    yield FileEntry(path, len(data), f"sha256:{digest}", reason), offset
                else:
                    # Rows without bytes are not the same photo.
                    yield FileEntry(f"row {number}", 0, digest, "empty"), offset
                offset += len(data)

        return open_packed(identity, self._cache_dir, members)

    def _iter_image_bytes(self) -> Iterator[bytes]:
        column = self._config.image_column
        with self._wrap_read_errors():
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
        names = list(map(_normalize_path, self._table[self._config.image_column].to_pylist()))
        folder, suffix = self._config.image_folder, self._config.image_suffix
        if not (folder or suffix):
            return names
        return [name and (f"{folder}/" if folder else "") + f"{name}{suffix}" for name in names]

    @cached_property
    def _table(self) -> pa.Table:
        """The configured columns, without image bytes."""
        if self._text is not None:
            return self._text.read(list(self._columns))
        names = [*self._columns]
        if self._has_image_bytes:
            names.remove(self._config.image_column)
        with self._wrap_read_errors():
            tables = [pq.read_table(path, columns=names) for path in self._paths]
        return self._concat_shards(tables)

    def _concat_shards(self, tables: Sequence[pa.Table]) -> pa.Table:
        """Concatenate the shards. Their column types and class names must be equal."""
        label = self._config.label_column
        if self._has_labels and label in tables[0].column_names:
            names = {str(class_names(table, label)) for table in tables}
            if len(names) > 1:
                raise PetsError(
                    f"{self.url}: the class names of column {label} or their order differ between "
                    "shards. Write all shards with the same class names"
                )
        try:
            return pa.concat_tables(tables, promote_options="permissive")
        except pa.ArrowException as error:
            raise PetsError(
                f"{self.url}: column types differ between shards ({error}). Write all shards with "
                "the same schema"
            ) from error

    @cached_property
    def _text(self) -> TextTable | None:
        """The CSV table; None: the source is Parquet."""
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
            raise PetsError(f"{self.url} is not a Parquet file: {error}") from error

    @contextmanager
    def _wrap_read_errors(self) -> Iterator[None]:
        """Raise a `PetsError` if Parquet data cannot be read."""
        try:
            yield
        except (pa.ArrowInvalid, OSError) as error:
            raise PetsError(f"{self.url} is damaged: {error}") from error

    @property
    def _has_image_bytes(self) -> bool:
        return not is_text_type(self._schema.field(self._config.image_column).type)

    @property
    def _columns(self) -> dict[str, str]:
        """The columns to read, and the setting that names each of them."""
        settings = self._config
        columns = {settings.image_column: "image_column"}
        if not self._has_labels:
            return columns
        if settings.tag_columns:
            columns |= dict.fromkeys(settings.tag_columns, "tag_columns")
        elif not target_spec(settings.targets).is_numbers:
            columns[settings.label_column] = "label_column"
        else:
            columns |= dict.fromkeys(settings.number_columns, "number_columns")
        if settings.group_column:
            columns[settings.group_column] = "group_column"
        if settings.split_column:
            columns[settings.split_column] = "split_column"
        return columns

    def _check_columns(self) -> None:
        settings, present = self._config, self._schema.names
        # A file that is not a table may have very long or very many column names.
        names = format_list([name[:40] for name in present], 20)
        geometry = target_spec(settings.targets).geometry
        if self._has_labels and geometry is not None and not settings.number_columns:
            raise PetsError(
                f"source.targets = {settings.targets}: {self.url} is a table. Set "
                "source.number_columns to the columns with the coordinates"
            )
        errors = [
            f"source.{setting} = {name}: {self.url}{self._format_text} has no such column, only "
            f"{names}.{did_you_mean(name, present)}"
            for name, setting in self._columns.items()
            if name not in present
        ] + [
            f"source.{setting} = {name}: {self.url} has {present.count(name)} such columns. Rename "
            "all but one"
            for name, setting in self._columns.items()
            if present.count(name) > 1
        ]
        if not errors and not is_image_type(self._schema.field(self._config.image_column).type):
            column = self._schema.field(self._config.image_column)
            errors.append(
                f"source.image_column = {column.name}: expected text (paths or URLs), binary or "
                f"struct<bytes, path>, but the column has type {column.type} in {self.url}"
            )
        if errors:
            raise PetsError("\n".join(errors))

    @property
    def _format_text(self) -> str:
        """Detected format of a CSV table, for messages about missing columns; empty: Parquet."""
        if self._text is None:
            return ""
        return f" (read with {self._text.format}, see source.delimiter and source.encoding)"


def _normalize_path(path: str | None) -> str | None:
    """Remove "." folders and double slashes, so that a photo has one id. URLs stay unchanged."""
    if path is None or _is_absolute(path) or ("./" not in path and "//" not in path):
        return path
    return "/".join(part for part in path.split("/") if part not in ("", "."))


def _file_name(url: str) -> str:
    return PurePosixPath(storage.strip_query(url)).name


def _is_absolute(path: str) -> bool:
    return storage.is_url(path) or path.startswith(("/", "file:"))
