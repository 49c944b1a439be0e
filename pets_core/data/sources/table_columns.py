"""Parse the columns of a table of photos: targets, groups and splits."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pets_core.config.source import SourceConfig
from pets_core.data.sources.catalogue import PredefinedSplit
from pets_core.data.sources.text_numbers import parse_numbers
from pets_core.data.sources.text_table import TextTable
from pets_core.errors import PetsError
from pets_core.records.target_spec import target_spec

__all__ = ["TableColumns", "TargetValue", "class_names", "is_image_type", "is_text_type"]

TargetValue = str | tuple[str, ...] | tuple[float, ...]
"""A class, tags or numbers."""
_SPLITS: dict[str, PredefinedSplit] = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "validation": "valid",
    "val": "valid",
    "test": "test",
    "trainval": "trainval",
}
_MISSING = frozenset({"nan", "<na>", "#n/a"})
"""Missing values as written by pandas and spreadsheets, in lower case."""
_WHOLE = re.compile(r"-?\d+(\.0+)?")
_ODD_TAG = re.compile(r"""[\[\]|;,{}"&+/]|^'|'$|^\W+$|:[\d.]+$""")
"""Matches tags that contain another separator, so that `source.tag_separator` may be wrong."""
_TAG_STATES = {
    **dict.fromkeys(("1", "1.0", "true"), True),
    **dict.fromkeys(("0", "0.0", "false", "-1", "-1.0", "", "none", "nan", "na", "<na>"), False),
}
"""Whether a photo has a tag, by the text of a one-hot cell."""


@dataclass(frozen=True)
class TableColumns:
    """Targets, groups and splits of the rows of a table.

    Attributes:
        table: The configured columns, without image bytes.
        settings: Names and meaning of the columns.
        url: Name of the table in messages.
        text: The CSV table that the columns were read from; None: Parquet.
    """

    table: pa.Table
    settings: SourceConfig
    url: str
    text: TextTable | None

    def targets(self) -> list[TargetValue]:
        """Return the class, tags or numbers of each row. A missing class is an empty string.

        Raises:
            PetsError: A cell or column has an invalid value or type.
        """
        settings, spec = self.settings, target_spec(self.settings.targets)
        if spec.is_label:
            return list(self._classes())
        if settings.tag_columns:
            return list(self._one_hot_tags())
        if spec.is_labels:
            return list(_tags(self.table, settings.label_column, settings.tag_separator))
        columns = [self._numbers(name) for name in settings.number_columns]
        return list(zip(*columns, strict=True))

    def _classes(self) -> Iterator[str]:
        column = self.settings.label_column
        if pa.types.is_nested(self.table[column].type) and not class_names(self.table, column):
            raise PetsError(
                f"source.label_column = {column}: {self.url} has lists or structs in this column. "
                "Set source.targets = tags"
            )
        labels = [(label or "").strip() for label in _names(self.table, column)]
        labels = ["" if label.lower() in _MISSING else label for label in labels]
        # pandas converts integers to floats if a value is missing: "3.0" is the label "3".
        if all(_WHOLE.fullmatch(label) for label in labels if label):
            labels = [label.partition(".")[0] for label in labels]
        yield from labels

    def _one_hot_tags(self) -> Iterator[tuple[str, ...]]:
        names = self.settings.tag_columns
        columns = [self.table[name].to_pylist() for name in names]
        for number, values in enumerate(zip(*columns, strict=True), 1):
            tags = []
            for name, value in zip(names, values, strict=True):
                state = _TAG_STATES.get(str(value).strip().lower())
                if state is None:
                    raise PetsError(
                        f"{self.url}: row {number} has {name} = {value!r}, expected 1, 0, -1 or "
                        "an empty cell (source.tag_columns)"
                    )
                if state:
                    tags.append(name)
            yield tuple(sorted(tags))

    def groups(self) -> list[str]:
        """Return the group of each row; empty strings without `source.group_column`.

        Raises:
            PetsError: A row has no group.
        """
        column = self.settings.group_column
        if not column:
            return [""] * self.table.num_rows
        names = [(_name_of(value, None) or "").strip() for value in self.table[column].to_pylist()]
        groups = ["" if name.lower() in _MISSING else name for name in names]
        if "" in groups:
            raise PetsError(
                f"{self.url}: row {groups.index('') + 1} has no {column} (source.group_column). "
                "Add a value"
            )
        return groups

    def _numbers(self, column: str) -> list[float]:
        values = self.table[column].to_pylist()
        if self.text is not None:
            parsed = parse_numbers(
                self.table[column],
                self.settings.decimal,
                delimiter=self.text.format.delimiter,
                setting="source.decimal",
                where=f"{self.url}: column {column}",
            ).tolist()
            values = [
                text if math.isnan(number) else number
                for text, number in zip(values, parsed, strict=True)
            ]
        return [self._number(column, value, row) for row, value in enumerate(values, 1)]

    def _number(self, column: str, value: Any, row: int) -> float:
        """Parse a cell as a number.

        Raises:
            PetsError: The cell is empty, not a finite number, or outside `source.y_range`.
        """
        prefix = f"{self.url}: row {row} has"
        if value is None or str(value).strip() in ("", "nan"):
            raise PetsError(f"{prefix} no {column}. Add a value or remove the row")
        prefix = f"{prefix} {column} = {value!r}"
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise PetsError(f"{prefix}, which is not a number") from None
        if not math.isfinite(number):
            raise PetsError(f"{prefix}, expected a finite number")
        low, high = self.settings.y_range or (-math.inf, math.inf)
        if not low <= number <= high:
            raise PetsError(
                f"{prefix}, outside source.y_range = ({low:g}, {high:g}). Correct one of them"
            )
        return number

    def splits(self) -> list[PredefinedSplit | None]:
        """Return the predefined split of each row; None without a split.

        Raises:
            PetsError: A row has an unknown split.
        """
        if not self.settings.split_column:
            return [None] * self.table.num_rows
        values = self.table[self.settings.split_column].to_pylist()
        return [self._split(value, number) for number, value in enumerate(values, 1)]

    def _split(self, value: Any, number: int) -> PredefinedSplit | None:
        if value is None:
            return None
        split = _SPLITS.get(str(value).strip().lower())
        if split is None:
            raise PetsError(
                f"{self.url}: row {number} has {self.settings.split_column} = {value!r}, expected "
                "train, valid, test or trainval"
            )
        return split

    def warnings(self, names: Collection[str]) -> tuple[str, ...]:
        """Return warnings about suspicious tags, one sentence each.

        Args:
            names: The vocabulary.
        """
        suspicious = sorted(name for name in names if _ODD_TAG.search(name))
        is_labels = target_spec(self.settings.targets).is_labels
        if not is_labels or self.settings.tag_columns or not suspicious:
            return ()
        separator = self.settings.tag_separator
        return (
            f"{len(suspicious)} of {len(names)} tags contain a bracket, a quote or a separator, "
            f"such as {suspicious[0]!r}. Check source.tag_separator = {separator or 'spaces'}, or "
            "use lists in a Parquet file.",
        )


def _names(table: pa.Table, column: str) -> list[str | None]:
    """Return labels as text, decoded by the class names of Hugging Face metadata if present."""
    names = class_names(table, column)
    return [_name_of(value, names) for value in table[column].to_pylist()]


def _tags(table: pa.Table, column: str, separator: str | None) -> Iterator[tuple[str, ...]]:
    """Yield the unique tags of each row in sorted order, from a list or from separated text."""
    names = class_names(table, column)
    for value in table[column].to_pylist():
        values = value
        if value is None or isinstance(value, str):
            values = (value or "").split(separator)
        elif not isinstance(value, list):
            # A column of labels has one tag per row.
            values = [value]
        tags = {(_name_of(tag, names) or "").strip() for tag in values}
        yield tuple(sorted(tag for tag in tags if tag and tag.lower() not in _MISSING))


def _name_of(value: Any, names: dict[int, str] | None) -> str | None:
    if names:
        # Hugging Face uses -1 for a missing label.
        return names.get(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bytes):
        value = value.decode(errors="backslashreplace")
    return None if value is None else str(value)


def class_names(table: pa.Table, column: str) -> dict[int, str] | None:
    """Return class names by index from Hugging Face metadata, for labels or lists of labels."""
    try:
        metadata = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
        feature = metadata["info"]["features"][column]
        if isinstance(feature, list):
            (feature,) = feature
        feature = feature.get("feature", feature)
        names = feature.get("names") or feature["feature"]["names"]
        return dict(enumerate(names))
    except (ValueError, LookupError, TypeError, AttributeError):
        # Other metadata define no class names.
        return None


def is_text_type(data_type: pa.DataType) -> bool:
    """Whether a column contains text, possibly dictionary-encoded."""
    if pa.types.is_dictionary(data_type):
        data_type = data_type.value_type
    return bool(pa.types.is_string(data_type) or pa.types.is_large_string(data_type))


def is_image_type(data_type: pa.DataType) -> bool:
    """Whether a column may contain photos: paths or URLs, binary, or struct<bytes, ...>."""
    if is_text_type(data_type):
        return True
    if pa.types.is_struct(data_type) and data_type.get_field_index("bytes") >= 0:
        data_type = data_type.field("bytes").type
    return bool(pa.types.is_binary(data_type) or pa.types.is_large_binary(data_type))
