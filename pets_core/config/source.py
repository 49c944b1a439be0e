"""Settings of the source and of the data set made of it."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, WithJsonSchema, model_validator

from pets_core.config.base import NAME_PATTERN, Settings
from pets_core.errors import PetsError
from pets_core.records.target_spec import BUILT_IN, DEFAULT_TARGET, target_spec

__all__ = [
    "ClassFolder",
    "IngestConfig",
    "SourceConfig",
]


def _known_target(value: str) -> str:
    try:
        target_spec(value)
    except PetsError as error:
        raise ValueError(str(error).removeprefix("targets = ")) from error
    return value


TargetName = Annotated[
    str,
    AfterValidator(_known_target),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "enum": list(BUILT_IN)},
                {"type": "string", "pattern": r"^[\w.]+:[\w.]+$"},
            ]
        }
    ),
]
"""A built-in kind of target, or module:object."""
ClassFolder = Literal["auto", "first", "last"]
"""Which of the folders around a photo names its class."""


class SourceConfig(Settings):
    """Where the photos come from and how they are split."""

    kind: Literal["auto", "sample", "oxford-iiit-pet", "folder", "table"] = "auto"
    """What the source is. auto: the built-in sample when no URL is given, else what lies there.
    folder: a folder of photos a class, or an archive (.zip, .tar, .tar.gz, ...) of such folders.
    table: CSV or Parquet."""
    url: str | None = None
    """Path or fsspec URL of the source; oxford-iiit-pet alone defaults to the authors' site."""
    name: Annotated[str, Field(pattern=NAME_PATTERN)] | None = None
    """Name of the data set; empty: the last part of the URL."""
    checksums: dict[
        str, Annotated[str, Field(pattern=r"^(md5|sha1|sha256|sha512):[0-9a-fA-F]+$")]
    ] = {}
    """What the source's archives or table must hash to, by file name: "md5:..." or "sha256:..."."""
    class_folder: ClassFolder = "auto"
    """Of a folder or archive: which folder names a photo's class, below a folder around all and
    below train, val and test. first: the outermost. last: the one the photo lies in. auto: the
    first, unless all of these hold the same folders, as 2023/cat and 2024/cat."""
    targets: TargetName = DEFAULT_TARGET
    """Kind of target. class: one of a vocabulary. tags: any number of them; of pets, species and
    breed. points, box: coordinates on the photo; of pets, the centre of the head and the box around
    it. numbers: the columns of a table. module:object: a kind of your own (docs/new-target.md)."""
    image_column: str = "image"
    """Of a table: the column with the photos' paths, URLs or bytes."""
    image_folder: str | None = None
    """Of a table of paths or ids: the folder they are in, from the table's folder."""
    image_suffix: str = ""
    """Of a table of ids: what follows each id in its file's name, as .jpg."""
    label_column: str = "label"
    """Of a table: the column with the labels; of tags, lists, or text with tag_separator."""
    tag_separator: Annotated[str, Field(min_length=1)] | None = None
    """Of a table whose tags are text: what stands between them; empty: spaces."""
    tag_columns: tuple[str, ...] = ()
    """Of a table with a column a tag, in place of label_column: 1 where a photo has the tag, 0 or
    nothing where not, and -1 where that is uncertain, which counts as not."""
    delimiter: str | None = None
    """Of a CSV table: what stands between its cells: a character, :: or tab; empty: detected."""
    encoding: str | None = None
    """Of a CSV table, as utf-8, utf-16 or cp1252; empty: detected."""
    quoting: bool | None = None
    """Of a CSV table: whether double quotes enclose cells; empty: detected."""
    decimal: Literal[".", ","] | None = None
    """Of the numbers of a CSV table: what stands before their fractions; empty: detected."""
    number_columns: tuple[str, ...] = ()
    """Of a table: the columns with the numbers. For points x and y in turn, for a box xmin, ymin,
    xmax and ymax, in pixels of the upright photo, from its upper left. Points that have a left and
    a right, as eyes, want transform.flip off: a mirrored left eye stays in its column."""
    units: tuple[str, ...] = ()
    """What the numbers are told in, one for each of number_columns; empty: none."""
    y_range: tuple[float, float] | None = None
    """Lowest and highest value of the numbers, which predictions are held within; empty: any.
    Places are on the photo in any case."""
    label_fixes: str | None = None
    """Path or URL of a CSV with columns id and label: photos that have another label than the
    source says; an empty label leaves the photo out. An evaluation proposes such a file."""
    split_column: str | None = None
    """Of a table: the column that says train, valid or test; empty: a random split."""
    split: Literal["auto", "official", "random"] = "auto"
    """official: the published trainval and test lists, the folders train, val and test, or
    split_column. auto: official where there is one."""
    valid_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the training photos held out for validation, by a hash of each photo's id. Each
    class of at least five photos has at least one."""
    test_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share held out for testing; random split only (the official brings its own)."""
    group_column: str | None = None
    """Of a table: the column with each photo's animal, patient or camera. All photos of one are on
    one side of a random split, so that a model is judged on others than it was trained on."""
    group_pattern: str | None = None
    """The same of any source: a regular expression that finds the group in a photo's id, as
    "^[^/]+/([^_]+)_". Its first parenthesis is the group, else the whole match."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the random part of the split, and of the built-in sample."""
    sample_photos_per_breed: Annotated[int, Field(ge=4, le=2000)] = 40
    """How many photos of each breed the built-in sample draws."""

    @model_validator(mode="after")
    def _combinations(self) -> SourceConfig:
        if self.valid_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"valid_fraction ({self.valid_fraction:g}) + test_fraction "
                f"({self.test_fraction:g}) must stay below 1: lower one"
            )
        if self.split == "official" and self.test_fraction:
            raise ValueError(
                f"test_fraction = {self.test_fraction:g} has no meaning with split = official, "
                "which brings its own test list: leave it out, or set split = random"
            )
        if self.group_column and self.group_pattern:
            raise ValueError("group_column and group_pattern are both set: leave out one of them")
        if self.group_pattern:
            try:
                re.compile(self.group_pattern)
            except re.error as error:
                raise ValueError(
                    f"group_pattern = {self.group_pattern!r} is no regular expression: {error}"
                ) from error
        if self.tag_columns and not target_spec(self.targets).is_labels:
            raise ValueError(f"tag_columns has no meaning with targets = {self.targets}: set tags")
        if self.tag_columns and self.tag_separator:
            raise ValueError("tag_separator has no meaning with tag_columns: leave out one of them")
        if self.kind in ("folder", "table") and self.url is None:
            raise ValueError(f"kind = {self.kind} needs url: where the {self.kind} lies")
        if self.kind == "sample" and self.url is not None:
            raise ValueError("kind = sample is generated and takes no url: leave one of them out")
        return self

    @model_validator(mode="after")
    def _numbers(self) -> SourceConfig:
        columns, num = self.number_columns, len(self.number_columns)
        spec = target_spec(self.targets)
        if columns and not spec.is_numbers:
            raise ValueError(
                f"number_columns = {', '.join(columns)} has no meaning with targets = "
                f"{self.targets}: set numbers, points or box"
            )
        if len(set(columns)) < num:
            raise ValueError(f"number_columns = {', '.join(columns)}: one is there twice")
        is_scale = spec.is_numbers and spec.geometry is None
        if is_scale and not columns:
            raise ValueError(
                f"targets = {self.targets} needs number_columns: where a table has them"
            )
        if columns and (spec.geometry, num % 2) == ("points", 1):
            raise ValueError(f"number_columns has {num} columns, for points x and y in turn")
        if columns and spec.geometry == "box" and num != 4:
            raise ValueError(f"number_columns has {num} columns, a box has xmin, ymin, xmax, ymax")
        for name, given in (("units", self.units), ("y_range", self.y_range)):
            if given and not is_scale:
                raise ValueError(f"{name} has no meaning with targets = {self.targets}: leave out")
        if self.units and len(self.units) != num:
            raise ValueError(f"units has {len(self.units)} entries, number_columns {num}")
        if self.y_range and self.y_range[0] >= self.y_range[1]:
            low, high = self.y_range
            raise ValueError(f"y_range ({low:g}, {high:g}) must have its lower end first")
        return self


class IngestConfig(Settings):
    """How photos become Parquet."""

    shard_mib: Annotated[int, Field(ge=1, le=4096)] = 32
    """Most photo bytes in one Parquet shard, MiB; each worker holds about three times as much."""
    row_group_rows: Annotated[int, Field(ge=1, le=10_000)] = 64
    """Photos in one Parquet row group."""
    max_quarantined_fraction: Annotated[float, Field(ge=0, le=1)] = 0.05
    """The run stops when more than this share of the photos cannot be used."""
    duplicates: Literal["keep", "drop"] = "keep"
    """drop: training photos that are (nearly) in valid or test are left out, and validation photos
    that are (nearly) in test."""
    near_duplicate_bits: Annotated[int, Field(ge=0, le=16)] = 6
    """Photos whose 64-bit perceptual hashes differ in at most so many bits are near-duplicates."""
    new_labels: Literal["refuse", "quarantine", "extend"] = "refuse"
    """What becomes of labels that earlier versions of the data set do not know. extend: they come
    after the known ones, in a new version of the label contract."""
    runner: Literal["threads", "processes", "dask", "ray"] = "threads"
    """What runs the shard tasks; dask and ray need the extra of that name."""
    runner_address: str | None = None
    """Of a running Dask scheduler or Ray cluster; empty: one is started on this machine."""
    num_workers: Annotated[int, Field(ge=0, le=10_000)] = 0
    """Shard tasks at a time; 0: one a CPU core. A running cluster decides that itself."""

    @model_validator(mode="after")
    def _address_has_a_cluster(self) -> IngestConfig:
        if self.runner_address is not None and self.runner not in ("dask", "ray"):
            raise ValueError(
                f"runner_address has no meaning with runner = {self.runner}: set dask or ray"
            )
        return self
