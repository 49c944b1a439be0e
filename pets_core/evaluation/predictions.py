"""The file of predictions of one split: all that an evaluation is computed from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pydantic
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, model_validator

from pets_core import storage
from pets_core.data.dataset import open_parquet
from pets_core.errors import PetsError
from pets_core.records.base import Split
from pets_core.records.dataset import ClassInfo, NumberInfo

__all__ = [
    "CHAMPION_PREDICTIONS",
    "MAPS",
    "PREDICTIONS",
    "VALID_PREDICTIONS",
    "PredictionColumns",
    "Predictions",
    "PredictionsInfo",
    "list_column",
    "read_info",
    "read_predictions",
    "refuse_rows",
    "write_predictions",
]

PREDICTIONS = "predictions.parquet"
VALID_PREDICTIONS = "predictions-valid.parquet"
CHAMPION_PREDICTIONS = "predictions-champion.parquet"
MAPS = "maps.parquet"
"""Names of the files that ranks write into the folder of an evaluation."""
_KEY = b"pets"
_ID = pa.field("id", pa.string())
_ROWS = 8192
"""Rows of a row group, and of a batch in memory: 8,192 rows of 1,000 classes take 32 MB."""


class PredictionsInfo(BaseModel):
    """Metadata of a file of predictions.

    Attributes:
        format_version: Files of version 1 had other fields for each kind, and are read too.
        targets: Kind of target.
        split: The samples predicted.
        model_url: Folder of the model.
        backbone: Its backbone.
        image_size: Side of its input, pixels.
        dataset_url: Folder of the data set's version, which holds the photos.
        dataset_name: Its name.
        dataset_fingerprint: Its fingerprint.
        tta_views: Augmented views that were averaged.
        photos_per_second: Of the prediction.
        classes: The model's vocabulary in index order, of kinds that have one.
        numbers: The model's numbers in order, of kinds that have them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1, 2] = 2
    targets: str = "class"
    split: Split
    model_url: str
    backbone: str
    image_size: int
    dataset_url: str
    dataset_name: str
    dataset_fingerprint: str
    tta_views: int = 0
    photos_per_second: float = 0.0
    classes: tuple[ClassInfo, ...] = ()
    numbers: tuple[NumberInfo, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _read_version_1(cls, data: Any) -> Any:
        """Files of tags of version 1 had the names of their vocabulary alone."""
        if isinstance(data, dict) and "tags" in data:
            data = dict(data)
            data["classes"] = [{"name": tag} for tag in data.pop("tags")]
        return data

    @property
    def names(self) -> list[str]:
        """Labels of the vocabulary in index order."""
        return [info.name for info in self.classes]

    @property
    def num_outputs(self) -> int:
        """Values that the model predicts of a sample."""
        return len(self.numbers or self.classes)


@dataclass(frozen=True)
class Predictions:
    """Predictions of N samples, D values each.

    Attributes:
        info: Metadata of the file.
        ids: Of the samples, N.
        targets: What is right, in the form of the kind: class indices (N,), flags or numbers
            (N, D).
        outputs: The model's, float32 (N, D): probabilities or numbers.
        losses: Loss of each sample, float32 (N,), of kinds that store it.
    """

    info: PredictionsInfo
    ids: list[str]
    targets: NDArray[Any]
    outputs: NDArray[np.float32]
    losses: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.ids)


class PredictionColumns(Protocol):
    """How a kind of target stores its predictions, besides the column `id`."""

    @property
    def name(self) -> str:
        """Name of the kind."""
        ...

    def schema(self, info: PredictionsInfo) -> pa.Schema:
        """Return the columns."""
        ...

    def to_columns(
        self, info: PredictionsInfo, targets: NDArray[Any], outputs: NDArray[np.float32]
    ) -> dict[str, pa.Array]:
        """Return the columns of some samples, from their targets and decoded outputs."""
        ...

    def from_columns(self, info: PredictionsInfo, url: str, table: pa.Table) -> NDArray[Any]:
        """Return the targets of a file."""
        ...

    @property
    def output_column(self) -> str:
        """Name of the column with the outputs, a list of D values a sample."""
        ...

    def check(self, url: str, predictions: Predictions) -> None:
        """Refuse targets or outputs that cannot be."""
        ...


def write_predictions(
    url: str,
    kind: PredictionColumns,
    info: PredictionsInfo,
    ids: Sequence[str],
    targets: NDArray[Any],
    outputs: NDArray[np.float32],
    embeddings: NDArray[np.float32] | None = None,
) -> None:
    """Write a row a sample, whole or not at all: id, the columns of the kind, embedding.

    Args:
        url: File to write.
        kind: The kind of target.
        info: Metadata of the file.
        ids: N.
        targets: (N,) or (N, D).
        outputs: (N, D), as `Target.decode` returns them.
        embeddings: Pooled features, (N, F), if they are to be stored.
    """
    assert outputs.shape == (len(ids), info.num_outputs), "a row a sample, a column an output"
    assert len(targets) == len(ids)
    fields = [_ID, *kind.schema(info)]
    if embeddings is not None:
        fields.append(pa.field("embedding", pa.list_(pa.float32(), embeddings.shape[1])))
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
            writer.write_table(pa.table(columns, schema=schema))


def list_column(values: NDArray[np.float32]) -> pa.Array:
    """Return a column of lists of one length, from an array (N, D)."""
    flat = pa.array(np.ascontiguousarray(values, np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def read_predictions(url: str, kind: PredictionColumns) -> Predictions:
    """Read a file of `write_predictions`, verifying the checksums of its pages.

    Raises:
        PetsError: There is no such file, it is of another kind, damaged, has no sample or one
            twice, or values that cannot be.
    """
    with _open(url) as parquet:
        info = _metadata(url, parquet)
        if info.targets != kind.name:
            raise PetsError(
                f"{url}: predictions of targets = {info.targets}, not of targets = {kind.name}"
            )
        if not info.num_outputs:
            raise PetsError(f"{url}: its metadata names nothing that is predicted: predict again")
        wanted = pa.schema([_ID, *kind.schema(info)])
        _check_schema(url, parquet, wanted, f"{info.num_outputs} outputs")
        names = wanted.names
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
    """Read the metadata of a file of predictions; errors as `read_predictions`."""
    with _open(url) as parquet:
        return _metadata(url, parquet)


def refuse_rows(
    url: str, predictions: Predictions, is_bad: NDArray[np.bool_], what: str, remedy: str
) -> None:
    """Raise an error that names the samples whose `what` cannot be; nothing where there are none.

    Args:
        url: File of the predictions.
        predictions: Its content.
        is_bad: (N,).
        what: What is wrong, after "of N samples".
        remedy: What to do.
    """
    bad = np.flatnonzero(is_bad)
    if len(bad):
        first = ", ".join(predictions.ids[i] for i in bad[:3])
        raise PetsError(
            f"{url}: {len(bad)} of {len(is_bad)} samples have {what}: {first}. {remedy}"
        )


@contextmanager
def _open(url: str) -> Iterator[pq.ParquetFile]:
    """Open a file of predictions; what cannot be read of it in the block is a `PetsError`."""
    with storage.open_read(storage.absolute(url)) as file:
        try:
            yield open_parquet(file)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise PetsError(f"{url}: no file of predictions, or damaged: {error}") from error


def _metadata(url: str, parquet: pq.ParquetFile) -> PredictionsInfo:
    metadata = parquet.schema_arrow.metadata or {}
    if _KEY not in metadata:
        raise PetsError(
            f"{url}: no file of predictions: its schema has no metadata {_KEY.decode()!r}; give "
            "the predictions.parquet of an evaluation"
        )
    try:
        return PredictionsInfo.model_validate_json(metadata[_KEY])
    except pydantic.ValidationError as error:
        raise PetsError(
            f"{url}: its metadata is damaged, or of a newer version: {error}"
        ) from error


def _check_schema(url: str, parquet: pq.ParquetFile, wanted: pa.Schema, what: str) -> None:
    """Refuse a file that lacks a column, or has one of another type."""
    schema = parquet.schema_arrow
    for field in wanted:
        place = schema.get_field_index(field.name)
        if place < 0 or schema.field(place).type != field.type:
            found = "no such column" if place < 0 else f"not {schema.field(place).type}"
            raise PetsError(
                f"{url}: no file of predictions of {what}: {field.name} must be {field.type}, "
                f"{found}"
            )


def _check_ids(url: str, ids: Sequence[str]) -> None:
    """Refuse a file without samples, or with one that is there twice."""
    if not ids:
        raise PetsError(f"{url}: holds no sample; evaluate a split that has some")
    if len(set(ids)) < len(ids):
        raise PetsError(f"{url}: {len(ids) - len(set(ids))} samples are in it twice: predict again")


def _read_lists(url: str, parquet: pq.ParquetFile, column: str, length: int) -> NDArray[np.float32]:
    """Read a column of lists batch by batch: whole, they take as much memory again.

    Returns:
        (N, length); what is null in a list is NaN.

    Raises:
        PetsError: A whole list is null.
    """
    result = np.empty((parquet.metadata.num_rows, length), np.float32)
    done = 0
    for batch in parquet.iter_batches(_ROWS, columns=[column]):
        if lacking := batch.column(column).null_count:
            raise PetsError(f"{url}: {lacking} samples have no {column}: predict again")
        values = batch.column(column).flatten().to_numpy(zero_copy_only=False)
        result[done : done + batch.num_rows] = values.reshape(-1, length)
        done += batch.num_rows
    return result
