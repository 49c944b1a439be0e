"""What a model said of each photo of a split: all that an evaluation is computed from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pydantic
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from pets_core import storage
from pets_core.data.dataset import open_parquet
from pets_core.errors import PetsError
from pets_core.records.base import Split, Targets
from pets_core.records.dataset import ClassInfo

__all__ = [
    "CHAMPION_PREDICTIONS",
    "MAPS",
    "PREDICTIONS",
    "VALID_PREDICTIONS",
    "AnyInfo",
    "Predictions",
    "PredictionsInfo",
    "PredictionsOrigin",
    "check_ids",
    "check_schema",
    "lists",
    "log_softmax",
    "metadata_of",
    "opened",
    "read_any_info",
    "read_info",
    "read_lists",
    "read_metadata",
    "read_predictions",
    "write_predictions",
    "write_rows",
]

PREDICTIONS = "predictions.parquet"
VALID_PREDICTIONS = "predictions-valid.parquet"
CHAMPION_PREDICTIONS = "predictions-champion.parquet"
MAPS = "maps.parquet"
"""Names of what ranks write into the folder of an evaluation."""
_KEY = b"pets"
_ROWS = 8192
"""In a row group, and looked at at once: a thousand classes of so many photos take 32 MB."""


class PredictionsOrigin(BaseModel):
    """Whose predictions of which photos a file holds.

    Attributes:
        split: The photos judged.
        model_url: The model.
        backbone: Its backbone.
        image_size: Side of the square it sees, pixels.
        dataset_url: Folder of the data set's version, which holds the photos.
        dataset_name: Its name.
        dataset_fingerprint: Its fingerprint.
        tta_views: Augmented views that were averaged.
        photos_per_second: That were predicted.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    split: Split
    model_url: str
    backbone: str
    image_size: int
    dataset_url: str
    dataset_name: str
    dataset_fingerprint: str
    tta_views: int = 0
    photos_per_second: float = 0.0


class AnyInfo(PredictionsOrigin):
    """What a file of predictions of any kind says of itself.

    Attributes:
        targets: What was predicted.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    targets: Targets = "class"


Info = TypeVar("Info", bound=PredictionsOrigin)


class PredictionsInfo(PredictionsOrigin):
    """What the file says of itself, in the metadata of its schema.

    Attributes:
        classes: The model's vocabulary in index order.
    """

    classes: tuple[ClassInfo, ...]


@dataclass(frozen=True)
class Predictions:
    """What a model said of N photos of C classes.

    Attributes:
        info: What the file says of itself.
        ids: Of the photos, N of them.
        targets: True class, int64 (N,).
        probabilities: float32 (N, C).
        losses: Cross-entropy of each photo, nats, float32 (N,).
    """

    info: PredictionsInfo
    ids: list[str]
    targets: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    losses: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def names(self) -> list[str]:
        """Class names in index order."""
        return [info.name for info in self.info.classes]

    @cached_property
    def predicted(self) -> NDArray[np.int64]:
        """Most probable class, int64 (N,)."""
        found: NDArray[np.int64] = self.probabilities.argmax(1)
        return found

    @cached_property
    def confidence(self) -> NDArray[np.float32]:
        """Its probability, (N,)."""
        found = np.take_along_axis(self.probabilities, self.predicted[:, None], axis=1)
        confidence: NDArray[np.float32] = found[:, 0]
        return confidence

    @cached_property
    def wrong(self) -> NDArray[np.bool_]:
        """Which photos were taken for another class, (N,)."""
        return np.asarray(self.predicted != self.targets)


def log_softmax(logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Logarithms of the probabilities of logits (N, C)."""
    shifted = logits - logits.max(1, keepdims=True).astype(np.float64)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return result


def write_predictions(
    url: str,
    info: PredictionsInfo,
    ids: Sequence[str],
    targets: NDArray[np.int64],
    logits: NDArray[np.float32],
    embeddings: NDArray[np.float32] | None = None,
) -> None:
    """Write a row a photo: id, actual, predicted, probability, loss, probabilities, embedding.

    Args:
        url: File to write.
        info: What it is to say of itself.
        ids: N.
        targets: (N,).
        logits: (N, C).
        embeddings: Pooled features, (N, D), if they are to be stored.
    """
    names = np.array([c.name for c in info.classes], dtype=object)
    schema = _schema(len(names)).with_metadata(metadata_of(info))
    if embeddings is not None:
        schema = schema.append(pa.field("embedding", pa.list_(pa.float32(), embeddings.shape[1])))

    def columns(rows: slice) -> list[pa.Array]:
        logs = log_softmax(logits[rows])
        probabilities = np.exp(logs).astype(np.float32)
        predicted = probabilities.argmax(1)
        features = [] if embeddings is None else [lists(embeddings[rows])]
        return [
            pa.array(ids[rows], pa.string()),
            pa.array(names[targets[rows]], pa.string()),
            pa.array(names[predicted], pa.string()),
            pa.array(np.take_along_axis(probabilities, predicted[:, None], 1)[:, 0]),
            pa.array(-np.take_along_axis(logs, targets[rows, None], 1)[:, 0], pa.float32()),
            lists(probabilities),
            *features,
        ]

    write_rows(url, schema, len(ids), columns)


def write_rows(
    url: str, schema: pa.Schema, num_rows: int, columns: Callable[[slice], list[pa.Array]]
) -> None:
    """Write a file of predictions piece by piece, whole or not at all.

    Args:
        url: File to write.
        schema: Of the file.
        num_rows: In all.
        columns: Makes those of some rows.
    """
    with (
        storage.writing(url) as file,
        pq.ParquetWriter(file, schema, write_page_checksum=True) as writer,
    ):
        for start in range(0, num_rows, _ROWS):
            made = columns(slice(start, start + _ROWS))
            writer.write_table(pa.Table.from_arrays(made, schema=schema))


def _schema(num_classes: int) -> pa.Schema:
    return pa.schema(
        [("id", pa.string()), ("actual", pa.string()), ("predicted", pa.string()),
         ("probability", pa.float32()), ("loss", pa.float32()),
         ("probabilities", pa.list_(pa.float32(), num_classes))]
    )  # fmt: skip


def metadata_of(info: PredictionsOrigin) -> dict[bytes, bytes]:
    """What a file of predictions says of itself, as metadata of its schema."""
    return {_KEY: info.model_dump_json().encode()}


def lists(values: NDArray[np.float32]) -> pa.Array:
    """A column of lists of one length, from an array (N, C)."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def read_predictions(url: str) -> Predictions:
    """Read a file of `write_predictions`, verifying the checksums of its pages.

    Raises:
        PetsError: It is not there, not such a file, damaged, holds no photo or one twice, or its
            numbers are no probabilities.
    """
    with opened(url) as parquet:
        info = read_metadata(url, parquet, PredictionsInfo)
        num_classes = len(info.classes)
        check_schema(url, parquet, _schema(num_classes), f"{num_classes} classes")
        table = parquet.read(columns=["id", "actual", "loss"])
        probabilities = read_lists(url, parquet, "probabilities", num_classes)
    ids, actual = table["id"].to_pylist(), table["actual"].to_pylist()
    places = {c.name: index for index, c in enumerate(info.classes)}
    check_ids(url, ids)
    if strange := [name for name in actual if name not in places]:
        raise PetsError(f"{url}: {strange[0]!r} is actual, but not among its {len(places)} classes")
    targets = np.array([places[name] for name in actual], np.int64)
    predictions = Predictions(info, ids, targets, probabilities, table["loss"].to_numpy())
    _refuse_what_is_no_probability(url, predictions)
    return predictions


def read_info(url: str) -> PredictionsInfo:
    """What a file says of itself; errors as `read_predictions`."""
    with opened(url) as parquet:
        return read_metadata(url, parquet, PredictionsInfo)


def read_any_info(url: str) -> AnyInfo:
    """What a file of predictions of any kind says of itself; errors as `read_predictions`."""
    with opened(url) as parquet:
        return read_metadata(url, parquet, AnyInfo)


@contextmanager
def opened(url: str) -> Iterator[pq.ParquetFile]:
    """Open a file of predictions; what cannot be read of it in the block is a `PetsError`."""
    with storage.open_read(storage.absolute(url)) as file:
        try:
            yield open_parquet(file)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise PetsError(f"{url}: no file of predictions, or damaged: {error}") from error


def read_metadata(url: str, parquet: pq.ParquetFile, kind: type[Info]) -> Info:
    """What a file says of itself.

    Raises:
        PetsError: It is no file of predictions, or of another kind.
    """
    metadata = parquet.schema_arrow.metadata or {}
    if _KEY not in metadata:
        raise PetsError(
            f"{url}: no file of predictions: its schema has no metadata {_KEY.decode()!r} that "
            "says whose they are; give the predictions.parquet of an evaluation"
        )
    try:
        return kind.model_validate_json(metadata[_KEY])
    except pydantic.ValidationError as error:
        raise PetsError(
            f"{url}: its metadata is damaged, or of another version or kind of model: {error}"
        ) from error


def check_schema(url: str, parquet: pq.ParquetFile, wanted: pa.Schema, what: str) -> None:
    """Refuse a file that lacks a column of predictions of `what`, or has one of another type."""
    schema = parquet.schema_arrow
    for field in wanted:
        place = schema.get_field_index(field.name)
        if place < 0 or schema.field(place).type != field.type:
            found = "no such column" if place < 0 else f"not {schema.field(place).type}"
            raise PetsError(
                f"{url}: no file of predictions of {what}: {field.name} is to be "
                f"{field.type}, {found}"
            )


def check_ids(url: str, ids: Sequence[str]) -> None:
    """Refuse a file without photos, or with one that is there twice."""
    if not ids:
        raise PetsError(f"{url}: holds no photo; judge a split that has some")
    if len(set(ids)) < len(ids):
        raise PetsError(f"{url}: {len(ids) - len(set(ids))} photos are in it twice: predict anew")


def read_lists(url: str, parquet: pq.ParquetFile, column: str, length: int) -> NDArray[np.float32]:
    """Read a column of lists, piece by piece, for whole they take as much memory again.

    Returns:
        (N, length); what is null in a list is NaN.

    Raises:
        PetsError: A whole list is null.
    """
    result = np.empty((parquet.metadata.num_rows, length), np.float32)
    done = 0
    for batch in parquet.iter_batches(_ROWS, columns=[column]):
        if lacking := batch.column(column).null_count:
            raise PetsError(f"{url}: {lacking} photos have no {column}: predict anew")
        values = batch.column(column).flatten().to_numpy(zero_copy_only=False)
        result[done : done + batch.num_rows] = values.reshape(-1, length)
        done += batch.num_rows
    return result


def _refuse_what_is_no_probability(url: str, predictions: Predictions) -> None:
    values = predictions.probabilities
    sums = values.sum(1, dtype=np.float64)
    # A sum that is right says that no value is NaN or infinite.
    bad = np.flatnonzero(
        ~(np.abs(sums - 1) < 1e-3) | (values.min(1) < 0) | ~np.isfinite(predictions.losses)
    )
    if len(bad):
        first = ", ".join(predictions.ids[i] for i in bad[:3])
        raise PetsError(
            f"{url}: the probabilities of {len(bad)} of {len(values)} photos are not finite, or do "
            f"not add up to 1: {first}. Predict anew; of a model that gives NaN, lower its "
            "train.base_lr"
        )
