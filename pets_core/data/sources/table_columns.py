"""The columns of a table of photos: classes, tags, numbers, groups and splits of its rows."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pets_core.config.source import SourceConfig
from pets_core.data.sources.catalogue import Official
from pets_core.data.sources.text_numbers import parse_numbers
from pets_core.data.sources.text_table import TextTable
from pets_core.errors import PetsError
from pets_core.records.target_spec import target_spec

__all__ = ["TableColumns", "Target", "class_names"]

Target = str | tuple[str, ...] | tuple[float, ...]
"""A class, tags or numbers."""
_OFFICIAL: dict[str, Official] = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "validation": "valid",
    "val": "valid",
    "test": "test",
    "trainval": "trainval",
}
_MISSING = frozenset({"nan", "<na>", "#n/a"})
"""What pandas and spreadsheets write, in lower case, where there is no value."""
_WHOLE = re.compile(r"-?\d+(\.0+)?")
_ODD_TAG = re.compile(r"""[\[\]|;,{}"&+/]|^'|'$|^\W+$|:[\d.]+$""")
"""What a tag holds when its cell was cut at the wrong separator."""
_TAG_STATES = {
    **dict.fromkeys(("1", "1.0", "true"), True),
    **dict.fromkeys(("0", "0.0", "false", "-1", "-1.0", "", "none", "nan", "na", "<na>"), False),
}
"""Whether a photo has a tag, by the text of its one-hot cell."""


@dataclass(frozen=True)
class TableColumns:
    """The rows of a table, without their photos.

    Attributes:
        table: The columns that the settings name.
        settings: Their names, and what they hold.
        url: Name of the table in messages.
        text: The file they were read from as text; None of Parquet.
    """

    table: pa.Table
    settings: SourceConfig
    url: str
    text: TextTable | None

    def targets(self) -> list[Target]:
        """The class, tags or numbers of each row; an empty text where a class is missing.

        Raises:
            PetsError: A cell holds something else.
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
                f"source.label_column = {column}: {self.url} has lists or structs there: set "
                "source.targets = tags"
            )
        labels = [(label or "").strip() for label in _names(self.table, column)]
        labels = ["" if label.lower() in _MISSING else label for label in labels]
        # What pandas makes of whole numbers where a row has none.
        if all(_WHOLE.fullmatch(label) for label in labels if label):
            labels = [label.partition(".")[0] for label in labels]
        yield from labels

    def _one_hot_tags(self) -> Iterator[tuple[str, ...]]:
        names = self.settings.tag_columns
        columns = [self.table[name].to_pylist() for name in names]
        for number, values in enumerate(zip(*columns, strict=True), 1):
            given = []
            for name, value in zip(names, values, strict=True):
                state = _TAG_STATES.get(str(value).strip().lower())
                if state is None:
                    raise PetsError(
                        f"{self.url}: row {number} has {name} = {value!r}, expected 1, 0, -1 or "
                        "nothing (source.tag_columns)"
                    )
                if state:
                    given.append(name)
            yield tuple(sorted(given))

    def groups(self) -> list[str]:
        """The group of each row; empty texts where no column has groups.

        Raises:
            PetsError: A row has none.
        """
        column = self.settings.group_column
        if not column:
            return [""] * self.table.num_rows
        names = [(_name_of(value, None) or "").strip() for value in self.table[column].to_pylist()]
        groups = ["" if name.lower() in _MISSING else name for name in names]
        if "" in groups:
            raise PetsError(
                f"{self.url}: row {groups.index('') + 1} has no {column} (source.group_column): "
                "fill it in"
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
        return [self._number(column, value, number) for number, value in enumerate(values, 1)]

    def _number(self, column: str, value: Any, number: int) -> float:
        """A cell as a number.

        Raises:
            PetsError: It is missing, no finite number, or outside `source.y_range`.
        """
        place = f"{self.url}: row {number} has {column} = {value!r}"
        if value is None or str(value).strip() in ("", "nan"):
            raise PetsError(
                f"{self.url}: row {number} has no {column}: fill it in, or leave it out"
            )
        try:
            found = float(value)
        except (TypeError, ValueError):
            raise PetsError(f"{place}, which is no number") from None
        if not math.isfinite(found):
            raise PetsError(f"{place}, expected a finite number")
        low, high = self.settings.y_range or (-math.inf, math.inf)
        if not low <= found <= high:
            raise PetsError(
                f"{place}, outside source.y_range = ({low:g}, {high:g}): correct one of them"
            )
        return found

    def splits(self) -> list[Official | None]:
        """The official split of each row that the column names.

        Raises:
            PetsError: It is none.
        """
        if not self.settings.split_column:
            return [None] * self.table.num_rows
        values = self.table[self.settings.split_column].to_pylist()
        return [self._split(value, number) for number, value in enumerate(values, 1)]

    def _split(self, value: Any, number: int) -> Official | None:
        if value is None:
            return None
        official = _OFFICIAL.get(str(value).strip().lower())
        if official is None:
            raise PetsError(
                f"{self.url}: row {number} has {self.settings.split_column} = {value!r}, expected "
                "train, valid, test or trainval"
            )
        return official

    def warnings(self, names: Collection[str]) -> tuple[str, ...]:
        """What is odd about the tags, a sentence each.

        Args:
            names: The vocabulary.
        """
        odd = sorted(name for name in names if _ODD_TAG.search(name))
        is_labels = target_spec(self.settings.targets).is_labels
        if not is_labels or self.settings.tag_columns or not odd:
            return ()
        separator = self.settings.tag_separator
        return (
            f"{len(odd)} of {len(names)} tags hold a bracket, a quote or a separator, the first "
            f"{odd[0]!r}: is source.tag_separator = {separator or 'spaces'} right? Set it to what "
            "stands between the tags, or give lists in a Parquet file.",
        )


def _names(table: pa.Table, column: str) -> list[str | None]:
    """Labels as text; where Hugging Face's metadata name the classes, by these names."""
    names = class_names(table, column)
    return [_name_of(value, names) for value in table[column].to_pylist()]


def _tags(table: pa.Table, column: str, separator: str | None) -> Iterator[tuple[str, ...]]:
    """The tags of each row, each once, in sorted order: of a list, or of text with separators."""
    names = class_names(table, column)
    for value in table[column].to_pylist():
        listed = value
        if value is None or isinstance(value, str):
            listed = (value or "").split(separator)
        elif not isinstance(value, list):
            # A column of labels: one tag each.
            listed = [value]
        tags = {(_name_of(tag, names) or "").strip() for tag in listed}
        yield tuple(sorted(tag for tag in tags if tag and tag.lower() not in _MISSING))


def _name_of(value: Any, names: dict[int, str] | None) -> str | None:
    if names:
        # -1 is how Hugging Face says that a row has no label.
        return names.get(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bytes):
        value = value.decode(errors="backslashreplace")
    return None if value is None else str(value)


def class_names(table: pa.Table, column: str) -> dict[int, str] | None:
    """Names by index that Hugging Face's metadata give a column of labels, or of lists of them."""
    try:
        metadata = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
        feature = metadata["info"]["features"][column]
        if isinstance(feature, list):
            (feature,) = feature
        feature = feature.get("feature", feature)
        names = feature.get("names") or feature["feature"]["names"]
        return dict(enumerate(names))
    except (ValueError, LookupError, TypeError, AttributeError):
        # Any other metadata name no classes.
        return None
