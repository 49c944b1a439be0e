"""Settings of the source and of ingestion."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, WithJsonSchema, model_validator

from pets_core.config.base import NAME_PATTERN, Settings
from pets_core.errors import PetsError
from pets_core.records.target_spec import BUILT_IN_SPECS, DEFAULT_TARGET, target_spec

__all__ = [
    "ClassFolder",
    "IngestConfig",
    "SourceConfig",
]


def _check_target(value: str) -> str:
    try:
        target_spec(value)
    except PetsError as error:
        raise ValueError(str(error).removeprefix("targets = ")) from error
    return value


TargetName = Annotated[
    str,
    AfterValidator(_check_target),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "enum": list(BUILT_IN_SPECS)},
                {"type": "string", "pattern": r"^[\w.]+:[\w.]+$"},
            ]
        }
    ),
]
"""Built-in kind of target, or module:object."""
ClassFolder = Literal["auto", "first", "last"]
"""Which folder on a photo's path is its class."""


class SourceConfig(Settings):
    """Location, labels and splits of the photos."""

    kind: Literal["auto", "sample", "oxford-iiit-pet", "folder", "table"] = "auto"
    """Type of the source. auto: the built-in sample if url is empty, otherwise detected from the
    content. folder: one folder of photos per class, or an archive (.zip, .tar, .tar.gz, ...) of
    such folders. table: CSV or Parquet."""
    url: str | None = None
    """Path or fsspec URL of the source. Only oxford-iiit-pet has a default: the authors' site."""
    name: Annotated[str, Field(pattern=NAME_PATTERN)] | None = None
    """Name of the data set. Empty: the last part of the URL."""
    checksums: dict[
        str, Annotated[str, Field(pattern=r"^(md5|sha1|sha256|sha512):[0-9a-fA-F]+$")]
    ] = {}
    """Expected checksums of the source's archives or table, by file name: "md5:...", "sha1:...",
    "sha256:..." or "sha512:..."."""
    class_folder: ClassFolder = "auto"
    """For a folder or archive: which folder on a photo's path is its class. A folder around all
    others and the folders train, val and test do not count. first: the outermost folder. last: the
    folder that contains the photo. auto: first; an error if several of these folders contain
    subfolders of the same names, such as 2023/cat and 2024/cat."""
    targets: TargetName = DEFAULT_TARGET
    """Kind of target. class: one label per photo. tags: any number of labels per photo (pets:
    species and breed). points, box: coordinates on the photo (pets: the centre of the head, the box
    around the head). numbers: columns of a table. module:object: a custom kind
    (docs/new-target.md)."""
    image_column: str = "image"
    """Column of the table with the photos' paths, URLs or bytes."""
    image_folder: str | None = None
    """Folder of the photos of a table of paths or ids, relative to the folder of the table."""
    image_suffix: str = ""
    """Suffix that is appended to each id of a table to form the file name, such as .jpg."""
    label_column: str = "label"
    """Column of the table with the labels. Tags: lists, or text that tag_separator separates."""
    tag_separator: Annotated[str, Field(min_length=1)] | None = None
    """Separator of the tags in a text cell of the table. Empty: spaces."""
    tag_columns: tuple[str, ...] = ()
    """Columns of a table with one column per tag, instead of label_column. 1: the photo has the
    tag. 0 or no value: it does not. -1: uncertain, treated as 0."""
    delimiter: str | None = None
    """Delimiter of a CSV table: one character, :: or tab. Empty: detected."""
    encoding: str | None = None
    """Encoding of a CSV table, such as utf-8, utf-16 or cp1252. Empty: detected."""
    quoting: bool | None = None
    """Whether double quotes enclose cells of a CSV table. Empty: detected."""
    decimal: Literal[".", ","] | None = None
    """Decimal mark of the numbers in a CSV table. Empty: detected."""
    number_columns: tuple[str, ...] = ()
    """Columns of the table with the numbers or coordinates. Points: x and y alternate. Box: xmin,
    ymin, xmax, ymax. Coordinates are pixels of the upright photo from its upper left corner. Set
    transform.flip = false for points that have a left and a right, such as eyes: a mirrored left
    eye stays in its column."""
    units: tuple[str, ...] = ()
    """Unit of each column of number_columns. Empty: no units."""
    y_range: tuple[float, float] | None = None
    """Lowest and highest value of the numbers; predictions stay within this range. Empty: no
    limits. Predicted coordinates always stay on the photo."""
    label_fixes: str | None = None
    """Path or URL of a CSV with columns id and label that corrects labels of the source. An empty
    label excludes the photo. The evaluation proposes such a file."""
    split_column: str | None = None
    """Column of the table with the split: train, valid or test. Empty: random split."""
    split: Literal["auto", "official", "random"] = "auto"
    """official: the published trainval and test lists, the folders train, val and test, or
    split_column. random: a hash of each photo's id. auto: official if available, otherwise
    random."""
    valid_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the training photos held out for validation, selected by a hash of each photo's id.
    Each class with at least five photos gets at least one validation photo."""
    test_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the photos held out for testing. Random split only; the official split has its own
    test photos."""
    group_column: str | None = None
    """Column of the table with the group of each photo, such as its animal, patient or camera. A
    random split keeps all photos of a group in one split, so that the model is evaluated on groups
    that it was not trained on."""
    group_pattern: str | None = None
    """Regular expression that extracts the group from a photo's id, for any source, such as
    "^[^/]+/([^_]+)_". The group is the first parenthesised group, or the whole match."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the random part of the split, and of the built-in sample."""
    sample_photos_per_breed: Annotated[int, Field(ge=4, le=2000)] = 40
    """Photos of each breed in the built-in sample."""

    @model_validator(mode="after")
    def _check_combinations(self) -> SourceConfig:
        if self.valid_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"valid_fraction ({self.valid_fraction:g}) + test_fraction "
                f"({self.test_fraction:g}) must stay below 1: lower one"
            )
        if self.split == "official" and self.test_fraction:
            raise ValueError(
                f"test_fraction = {self.test_fraction:g} cannot be used with split = official, "
                "which has its own test photos: remove it, or set split = random"
            )
        if self.group_column and self.group_pattern:
            raise ValueError("group_column and group_pattern are both set: remove one of them")
        if self.group_pattern:
            try:
                re.compile(self.group_pattern)
            except re.error as error:
                raise ValueError(
                    f"group_pattern = {self.group_pattern!r} is not a regular expression: {error}"
                ) from error
        if self.tag_columns and not target_spec(self.targets).is_labels:
            raise ValueError(
                f"targets = {self.targets} does not use tag_columns: set targets = tags"
            )
        if self.tag_columns and self.tag_separator:
            raise ValueError("tag_separator and tag_columns are both set: remove one of them")
        if self.kind in ("folder", "table") and self.url is None:
            raise ValueError(f"kind = {self.kind} needs url: set it to the {self.kind}'s location")
        if self.kind == "sample" and self.url is not None:
            raise ValueError("kind = sample is generated and takes no url: remove one of them")
        return self

    @model_validator(mode="after")
    def _check_numbers(self) -> SourceConfig:
        columns, num = self.number_columns, len(self.number_columns)
        spec = target_spec(self.targets)
        if columns and not spec.is_numbers:
            raise ValueError(
                f"number_columns = {', '.join(columns)} cannot be used with targets = "
                f"{self.targets}: set targets = numbers, points or box"
            )
        if len(set(columns)) < num:
            raise ValueError(f"number_columns = {', '.join(columns)}: remove the duplicate column")
        is_regression = spec.is_numbers and spec.geometry is None
        if is_regression and not columns:
            raise ValueError(
                f"targets = {self.targets} needs number_columns: set the table's columns"
            )
        if columns and (spec.geometry, num % 2) == ("points", 1):
            raise ValueError(f"number_columns has {num} columns: set x and y of every point")
        if columns and spec.geometry == "box" and num != 4:
            raise ValueError(f"number_columns has {num} columns: set xmin, ymin, xmax and ymax")
        for name, value in (("units", self.units), ("y_range", self.y_range)):
            if value and not is_regression:
                raise ValueError(f"{name} cannot be used with targets = {self.targets}: remove it")
        if self.units and len(self.units) != num:
            raise ValueError(f"units has {len(self.units)} entries: set {num}, one per column")
        if self.y_range and self.y_range[0] >= self.y_range[1]:
            low, high = self.y_range
            raise ValueError(f"y_range ({low:g}, {high:g}): the first value must be the lower one")
        return self


class IngestConfig(Settings):
    """How photos are checked and written to Parquet shards."""

    shard_mib: Annotated[int, Field(ge=1, le=4096)] = 32
    """Maximum photo bytes per Parquet shard, MiB. Each worker needs about three times this
    memory."""
    row_group_rows: Annotated[int, Field(ge=1, le=10_000)] = 64
    """Photos per Parquet row group."""
    max_quarantined_fraction: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Maximum share of photos that cannot be used. The run fails if it is exceeded."""
    duplicates: Literal["keep", "drop"] = "keep"
    """keep: only report duplicates. drop: exclude training photos with a (near-)duplicate in valid
    or test, and validation photos with one in test."""
    near_duplicate_bits: Annotated[int, Field(ge=0, le=16)] = 6
    """Photos are near-duplicates if their 64-bit perceptual hashes differ in at most this many
    bits."""
    new_labels: Literal["refuse", "quarantine", "extend"] = "refuse"
    """How to handle labels that earlier versions of the data set do not have. refuse: fail.
    quarantine: exclude their photos. extend: append them to the existing labels, in a new version
    of the label contract."""
    runner: Literal["threads", "processes", "dask", "ray"] = "threads"
    """Task runner of the shard tasks. dask and ray need the extra of that name."""
    runner_address: str | None = None
    """Address of a running Dask scheduler or Ray cluster. Empty: start one on this machine."""
    num_workers: Annotated[int, Field(ge=0, le=10_000)] = 0
    """Shard tasks at the same time. 0: one per CPU core. A running cluster uses its own limit."""

    @model_validator(mode="after")
    def _check_runner_address(self) -> IngestConfig:
        if self.runner_address is not None and self.runner not in ("dask", "ray"):
            raise ValueError(
                f"runner_address cannot be used with runner = {self.runner}: set runner = dask or "
                "ray, or remove runner_address"
            )
        return self
