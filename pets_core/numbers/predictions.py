"""What a model said of the numbers of each photo of a split, in a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import model_validator

from pets_core.errors import PetsError
from pets_core.evaluation.predictions import (
    PredictionsOrigin,
    check_ids,
    check_schema,
    lists,
    metadata_of,
    opened,
    read_lists,
    read_metadata,
    write_rows,
)
from pets_core.numbers.records import NumberTargets
from pets_core.records.dataset import NumberInfo

__all__ = [
    "NumberPredictions",
    "NumberPredictionsInfo",
    "read_number_predictions",
    "write_number_predictions",
]


class NumberPredictionsInfo(PredictionsOrigin):
    """What the file says of itself, in the metadata of its schema.

    Attributes:
        targets: What the numbers are: plain ones, or places from -1 at the photo's left and upper
            edge to 1 at the others: x and y of each point in turn, or a box's xmin, ymin, xmax,
            ymax.
        numbers: In the order of the columns of `NumberPredictions`, D of them.
    """

    targets: NumberTargets
    numbers: tuple[NumberInfo, ...]

    @model_validator(mode="after")
    def _places_are_whole(self) -> NumberPredictionsInfo:
        count = len(self.numbers)
        if not count:
            raise ValueError("numbers is empty")
        if self.targets == "points" and count % 2:
            raise ValueError(f"points have an x and a y each, and there are {count} numbers")
        if self.targets == "box" and count != 4:
            raise ValueError(f"a box has 4 numbers, and there are {count}")
        return self


@dataclass(frozen=True)
class NumberPredictions:
    """What a model said of D numbers of each of N photos.

    Attributes:
        info: What the file says of itself.
        ids: Of the photos, N of them.
        targets: What they are, float32 (N, D).
        predicted: What the model said, float32 (N, D).
    """

    info: NumberPredictionsInfo
    ids: list[str]
    targets: NDArray[np.float32]
    predicted: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.ids)


def write_number_predictions(
    url: str,
    info: NumberPredictionsInfo,
    ids: Sequence[str],
    targets: NDArray[np.float32],
    predicted: NDArray[np.float32],
) -> None:
    """Write a row a photo: id, actual, predicted.

    Args:
        url: File to write.
        info: What it is to say of itself.
        ids: N.
        targets: (N, D).
        predicted: (N, D).
    """
    shape = (len(ids), len(info.numbers))
    assert targets.shape == predicted.shape == shape, "a row a photo, a column a number"
    schema = _schema(len(info.numbers)).with_metadata(metadata_of(info))

    def columns(rows: slice) -> list[pa.Array]:
        numbers = (lists(values[rows].astype(np.float32)) for values in (targets, predicted))
        return [pa.array(ids[rows], pa.string()), *numbers]

    write_rows(url, schema, len(ids), columns)


def read_number_predictions(url: str) -> NumberPredictions:
    """Read a file of `write_number_predictions`, verifying the checksums of its pages.

    Raises:
        PetsError: It is not there, not such a file, damaged, holds no photo or one twice, or a
            number that is not finite.
    """
    with opened(url) as parquet:
        info = read_metadata(url, parquet, NumberPredictionsInfo)
        count = len(info.numbers)
        check_schema(url, parquet, _schema(count), f"{count} numbers")
        ids = parquet.read(columns=["id"])["id"].to_pylist()
        actual, predicted = (
            read_lists(url, parquet, name, count) for name in ("actual", "predicted")
        )
    check_ids(url, ids)
    remedy = "mend the numbers of the source and ingest again"
    _refuse_what_is_not_finite(url, "actual", ids, actual, remedy)
    remedy = "predict anew; of a model that gives NaN, lower its train.base_lr"
    _refuse_what_is_not_finite(url, "predicted", ids, predicted, remedy)
    return NumberPredictions(info, ids, actual, predicted)


def _schema(count: int) -> pa.Schema:
    numbers = pa.list_(pa.float32(), count)
    return pa.schema([("id", pa.string()), ("actual", numbers), ("predicted", numbers)])


def _refuse_what_is_not_finite(
    url: str, column: str, ids: Sequence[str], values: NDArray[np.float32], remedy: str
) -> None:
    bad = np.flatnonzero(~np.isfinite(values).all(1))
    if len(bad):
        first = ", ".join(ids[i] for i in bad[:3])
        raise PetsError(
            f"{url}: the {column} numbers of {len(bad)} of {len(ids)} photos are not finite: "
            f"{first}; {remedy}"
        )
