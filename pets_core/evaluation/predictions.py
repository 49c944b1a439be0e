"""Predictions file of one split: the only input of an evaluation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import model_validator

from pets_core import storage
from pets_core.data.dataset import check_columns, list_column, open_described
from pets_core.errors import PetsError
from pets_core.records.base import Record, Split, renamed
from pets_core.records.dataset import ClassInfo, NumberInfo

__all__ = [
    "CHAMPION_PREDICTIONS",
    "MAPS",
    "PREDICTIONS",
    "VALID_PREDICTIONS",
    "PredictionColumns",
    "Predictions",
    "PredictionsInfo",
    "raise_for_rows",
    "read_info",
    "read_predictions",
    "write_predictions",
]

PREDICTIONS = "predictions.parquet"
VALID_PREDICTIONS = "predictions-valid.parquet"
CHAMPION_PREDICTIONS = "predictions-champion.parquet"
MAPS = "maps.parquet"
"""Names of the files that ranks write to the evaluation folder."""
_KEY = b"pets"
_ID = pa.field("id", pa.string())
_ROWS = 8192
"""Rows per row group and per batch in memory: 8,192 rows of 1,000 classes take 32 MB."""


class PredictionsInfo(Record):
    """Metadata of a predictions file.

    Attributes:
        format_version: 3. Version 1, with other fields per kind of target, and version 2, with
            `classes` for `vocabulary`, can be read.
        targets: Kind of target.
        split: The predicted split.
        model_url: Folder of the model.
        backbone: Backbone of the model; for ratings, the type of model.
        image_size: Side of the model's input, pixels; None for models without photos.
        dataset_url: Folder of the data set version.
        dataset_name: Name of the data set.
        dataset_fingerprint: Fingerprint of the data set version.
        tta_views: Number of averaged augmented views.
        photos_per_second: Prediction throughput.
        vocabulary: Classes or tags in index order; empty for numbers and coordinates.
        numbers: Regression outputs of the model in order; empty for other targets.
    """

    format_version: Literal[1, 2, 3] = 3
    targets: str = "class"
    split: Split
    model_url: str
    backbone: str
    image_size: int | None = None
    dataset_url: str
    dataset_name: str
    dataset_fingerprint: str
    tta_views: int = 0
    photos_per_second: float = 0.0
    vocabulary: tuple[ClassInfo, ...] = renamed("vocabulary", "classes", ())
    numbers: tuple[NumberInfo, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _read_version_1(cls, data: Any) -> Any:
        """Read version 1 files of tags, which store only the names of the vocabulary."""
        if isinstance(data, dict) and "tags" in data:
            data = dict(data)
            data["vocabulary"] = [{"name": tag} for tag in data.pop("tags")]
        return data

    @property
    def names(self) -> list[str]:
        """Labels of the vocabulary in index order."""
        return [info.name for info in self.vocabulary]

    @property
    def num_outputs(self) -> int:
        """Number of values that the model predicts per sample."""
        return len(self.numbers or self.vocabulary)


@dataclass(frozen=True)
class Predictions:
    """Predictions of N samples, D values each.

    Attributes:
        info: Metadata of the file.
        ids: N sample ids.
        targets: Ground truth: class indices (N,), or flags or numbers (N, D).
        outputs: Predicted probabilities or numbers, float32 (N, D).
        losses: Loss of each sample, float32 (N,); None if the kind of target does not store it.
    """

    info: PredictionsInfo
    ids: list[str]
    targets: NDArray[Any]
    outputs: NDArray[np.float32]
    losses: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.ids)


class PredictionColumns(ABC):
    """Columns in which a kind of target stores its predictions, in addition to `id`.

    Attributes:
        name: Value of `source.targets`: a built-in name, or "module:object" for a custom kind.
        output_column: Column of the prediction file that holds the outputs, a list of D values per
            sample.
    """

    name: ClassVar[str]
    output_column: ClassVar[str]

    @abstractmethod
    def schema(self, info: PredictionsInfo) -> pa.Schema:
        """Return the schema of a prediction file, without the columns id and embedding."""

    @abstractmethod
    def to_columns(
        self, info: PredictionsInfo, targets: NDArray[Any], outputs: NDArray[np.float32]
    ) -> dict[str, pa.Array]:
        """Return the columns of `schema` for N samples.

        Args:
            info: Metadata of the file.
            targets: (N,) or (N, D).
            outputs: Decoded outputs, (N, D).
        """

    @abstractmethod
    def from_columns(self, info: PredictionsInfo, url: str, table: pa.Table) -> NDArray[Any]:
        """Return the actual targets, (N,) or (N, D).

        Args:
            info: Metadata of the file.
            url: The file, for error messages.
            table: Its columns, without the output column.
        """

    @abstractmethod
    def check(self, url: str, predictions: Predictions) -> None:
        """Check that all targets and outputs are valid.

        Raises:
            PetsError: A value is invalid, such as NaN.
        """


def write_predictions(
    url: str,
    kind: PredictionColumns,
    info: PredictionsInfo,
    ids: Sequence[str],
    targets: NDArray[Any],
    outputs: NDArray[np.float32],
    embeddings: NDArray[np.float32] | None = None,
    more: pa.Table | None = None,
) -> None:
    """Write one row per sample, atomically: id, the columns of the kind, embedding.

    Args:
        url: File to write.
        kind: The kind of target.
        info: Metadata of the file.
        ids: N sample ids.
        targets: (N,) or (N, D).
        outputs: (N, D), as returned by `Target.decode`.
        embeddings: Pooled features to store, (N, F).
        more: Additional columns, N rows.
    """
    assert outputs.shape == (len(ids), info.num_outputs), "outputs must be (samples, outputs)"
    assert len(targets) == len(ids)
    fields = [_ID, *kind.schema(info)]
    if embeddings is not None:
        fields.append(pa.field("embedding", pa.list_(pa.float32(), embeddings.shape[1])))
    fields += [] if more is None else more.schema
    schema = pa.schema(fields, {_KEY: info.model_dump_json().encode()})
    with (
        storage.writing(url) as file,
        pq.ParquetWriter(file, schema, write_page_checksum=True) as writer,
    ):
        for start in range(0, len(ids), _ROWS):
            rows = slice(start, start + _ROWS)
            columns = {"id": pa.array(ids[rows], pa.string())}
            columns |= kind.to_columns(info, targets[rows], outputs[rows])
            if embeddings is not None:
                columns["embedding"] = list_column(embeddings[rows])
            if more is not None:
                part = more.slice(start, _ROWS)
                columns |= dict(zip(part.column_names, part.columns, strict=True))
            writer.write_table(pa.table(columns, schema=schema))


def read_predictions(url: str, kind: PredictionColumns) -> Predictions:
    """Read a file of `write_predictions` and verify its page checksums.

    Raises:
        PetsError: The file is missing, damaged or of another kind of target, has no samples,
            duplicate samples or invalid values.
    """
    with _open(url) as (parquet, info):
        if info.targets != kind.name:
            raise PetsError(
                f"{url}: predictions of targets = {info.targets}, not of targets = {kind.name}"
            )
        if not info.num_outputs:
            raise PetsError(f"{url}: its metadata has no outputs: predict again")
        expected = pa.schema([_ID, *kind.schema(info)])
        noun = f"a predictions file of {info.num_outputs} outputs"
        check_columns(url, parquet, expected, noun)
        names = expected.names
        table = parquet.read(columns=[name for name in names if name != kind.output_column])
        outputs = _read_lists(url, parquet, kind.output_column, info.num_outputs)
    ids = table["id"].to_pylist()
    _check_ids(url, ids)
    losses = table["loss"].to_numpy() if "loss" in table.column_names else None
    targets = kind.from_columns(info, url, table)
    predictions = Predictions(info, ids, targets, outputs, losses)
    kind.check(url, predictions)
    return predictions


def read_info(url: str) -> PredictionsInfo:
    """Read the metadata of a predictions file; errors as `read_predictions`."""
    with _open(url) as (_, info):
        return info


def raise_for_rows(
    url: str, predictions: Predictions, is_bad: NDArray[np.bool_], what: str, remedy: str
) -> None:
    """Raise a PetsError that names the invalid samples, if there are any.

    Args:
        url: The predictions file.
        predictions: Content of the file.
        is_bad: Whether each sample is invalid, (N,).
        what: The problem, a phrase after "of N samples have".
        remedy: How to correct it.
    """
    bad = np.flatnonzero(is_bad)
    if len(bad):
        first = ", ".join(predictions.ids[i] for i in bad[:3])
        raise PetsError(
            f"{url}: {len(bad)} of {len(is_bad)} samples have {what}: {first}. {remedy}"
        )


def _open(url: str) -> AbstractContextManager[tuple[pq.ParquetFile, PredictionsInfo]]:
    """Open a predictions file; read errors in the block are raised as `PetsError`."""
    remedy = "use the predictions.parquet of an evaluation"
    return open_described(url, _KEY, PredictionsInfo, "a predictions file", remedy)


def _check_ids(url: str, ids: Sequence[str]) -> None:
    """Raise a PetsError if there are no samples, or duplicates."""
    if not ids:
        raise PetsError(f"{url}: no samples: evaluate a split that has samples")
    if len(set(ids)) < len(ids):
        raise PetsError(f"{url}: {len(ids) - len(set(ids))} duplicate samples: predict again")


def _read_lists(url: str, parquet: pq.ParquetFile, column: str, length: int) -> NDArray[np.float32]:
    """Read a column of lists in batches, to halve the peak memory.

    Returns:
        (N, length); null values in a list are NaN.

    Raises:
        PetsError: A list is null.
    """
    result = np.empty((parquet.metadata.num_rows, length), np.float32)
    done = 0
    for batch in parquet.iter_batches(_ROWS, columns=[column]):
        if num_missing := batch.column(column).null_count:
            raise PetsError(f"{url}: {num_missing} samples have no {column}: predict again")
        values = batch.column(column).flatten().to_numpy(zero_copy_only=False)
        result[done : done + batch.num_rows] = values.reshape(-1, length)
        done += batch.num_rows
    return result
