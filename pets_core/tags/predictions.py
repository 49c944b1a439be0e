"""What a model said of the tags of each photo of a split, in a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

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

__all__ = [
    "TagPredictions",
    "TagPredictionsInfo",
    "binary_cross_entropy",
    "read_tag_predictions",
    "write_tag_predictions",
]

_LEAST = float(np.finfo(np.float32).eps)


class TagPredictionsInfo(PredictionsOrigin):
    """What the file says of itself, in the metadata of its schema.

    Attributes:
        targets: Tags.
        tags: The model's vocabulary in index order.
    """

    targets: Literal["tags"] = "tags"
    tags: tuple[str, ...] = Field(min_length=1)


@dataclass(frozen=True)
class TagPredictions:
    """What a model said of C tags of each of N photos.

    Attributes:
        info: What the file says of itself.
        ids: Of the photos, N of them.
        targets: Which tags each photo has, bool (N, C).
        probabilities: float32 (N, C), each by itself.
        losses: Binary cross-entropy, the mean over a photo's tags, nats, float32 (N,).
    """

    info: TagPredictionsInfo
    ids: list[str]
    targets: NDArray[np.bool_]
    probabilities: NDArray[np.float32]
    losses: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.ids)


def binary_cross_entropy(
    targets: NDArray[np.bool_], probabilities: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The mean over each photo's tags, nats: (N, C) twice to (N,).

    A probability of 0 or 1 is what rounding made of one near it.
    """
    of_target = np.where(targets, probabilities, 1 - probabilities)
    losses: NDArray[np.float32] = -np.log(of_target.clip(_LEAST)).mean(1).astype(np.float32)
    return losses


def write_tag_predictions(
    url: str,
    info: TagPredictionsInfo,
    ids: Sequence[str],
    targets: NDArray[np.bool_],
    probabilities: NDArray[np.float32],
) -> None:
    """Write a row a photo: id, actual (the names of its tags), loss, probabilities.

    Args:
        url: File to write.
        info: What it is to say of itself.
        ids: N.
        targets: (N, C).
        probabilities: (N, C).
    """
    assert targets.shape == probabilities.shape == (len(ids), len(info.tags))
    schema = _schema(len(info.tags)).with_metadata(metadata_of(info))
    losses = binary_cross_entropy(targets, probabilities)

    def columns(rows: slice) -> list[pa.Array]:
        actual = [[info.tags[i] for i in np.flatnonzero(row)] for row in targets[rows]]
        return [
            pa.array(ids[rows], pa.string()),
            pa.array(actual, pa.list_(pa.string())),
            pa.array(losses[rows]),
            lists(probabilities[rows].astype(np.float32)),
        ]

    write_rows(url, schema, len(ids), columns)


def read_tag_predictions(url: str) -> TagPredictions:
    """Read a file of `write_tag_predictions`, verifying the checksums of its pages.

    Raises:
        PetsError: It is not there, not such a file, damaged, holds no photo or one twice, a tag
            outside its vocabulary, or what is no probability.
    """
    with opened(url) as parquet:
        info = read_metadata(url, parquet, TagPredictionsInfo)
        check_schema(url, parquet, _schema(len(info.tags)), f"{len(info.tags)} tags")
        table = parquet.read(columns=["id", "actual"])
        probabilities = read_lists(url, parquet, "probabilities", len(info.tags))
    ids, actual = table["id"].to_pylist(), table["actual"].to_pylist()
    check_ids(url, ids)
    places = {tag: index for index, tag in enumerate(info.tags)}
    targets = np.zeros(probabilities.shape, np.bool_)
    for row, tags in enumerate(actual):
        for tag in tags or ():
            if tag not in places:
                raise PetsError(f"{url}: {tag!r} is actual, but not among its {len(places)} tags")
            targets[row, places[tag]] = True
    _refuse_what_is_no_probability(url, ids, probabilities)
    losses = binary_cross_entropy(targets, probabilities)
    return TagPredictions(info, ids, targets, probabilities, losses)


def _schema(num_tags: int) -> pa.Schema:
    return pa.schema(
        [("id", pa.string()), ("actual", pa.list_(pa.string())), ("loss", pa.float32()),
         ("probabilities", pa.list_(pa.float32(), num_tags))]
    )  # fmt: skip


def _refuse_what_is_no_probability(
    url: str, ids: Sequence[str], values: NDArray[np.float32]
) -> None:
    # Written so that NaN is bad, too.
    bad = np.flatnonzero(~((values >= 0) & (values <= 1)).all(1))
    if len(bad):
        first = ", ".join(ids[i] for i in bad[:3])
        raise PetsError(
            f"{url}: the probabilities of {len(bad)} of {len(ids)} photos are not finite, or not "
            f"from 0 to 1: {first}. Predict anew; of a model that gives NaN, lower its "
            "train.base_lr"
        )
