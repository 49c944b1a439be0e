"""The photos whose tags a model did worst on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pets_core.data.dataset import read_table, write_table
from pets_core.evaluation.gallery import photos
from pets_core.tags.predictions import TagPredictions

__all__ = ["TaggedPhoto", "read_top_losses", "top_losses", "write_top_losses"]

_NUM_PHOTOS = 16
_SIDE = 160
_SCHEMA = pa.schema(
    [("photo_id", pa.string()), ("actual", pa.list_(pa.string())),
     ("given", pa.list_(pa.string())), ("probabilities", pa.list_(pa.float64())),
     ("loss", pa.float64()), ("jpeg", pa.binary())]
)  # fmt: skip


@dataclass(frozen=True)
class TaggedPhoto:
    """A photo and what the model said of it.

    Attributes:
        photo_id: Its id in the data set.
        actual: Its tags.
        given: Those that the model gave it, the most probable first.
        probabilities: Of these.
        loss: Binary cross-entropy, the mean over the tags, nats.
        jpeg: The photo, small; None where the data set is out of reach.
    """

    photo_id: str
    actual: tuple[str, ...]
    given: tuple[str, ...]
    probabilities: tuple[float, ...]
    loss: float
    jpeg: bytes | None = None


def top_losses(predictions: TagPredictions, given: NDArray[np.bool_]) -> list[TaggedPhoto]:
    """The photos of greatest loss, the worst first, fetched.

    Args:
        predictions: Of the photos judged, N of them, C tags each.
        given: Which tags each photo is given, (N, C).
    """
    worst = np.argsort(-predictions.losses, kind="stable")[:_NUM_PHOTOS]
    ids = [predictions.ids[row] for row in worst]
    jpegs, tags = photos(predictions.info.dataset_url, ids, _SIDE), predictions.info.tags
    shown = []
    for photo_id, row in zip(ids, worst, strict=True):
        said = predictions.probabilities[row]
        chosen = [i for i in np.argsort(-said, kind="stable") if given[row, i]]
        shown.append(
            TaggedPhoto(
                photo_id=photo_id,
                actual=tuple(tags[i] for i in np.flatnonzero(predictions.targets[row])),
                given=tuple(tags[i] for i in chosen),
                probabilities=tuple(float(said[i]) for i in chosen),
                loss=float(predictions.losses[row]),
                jpeg=jpegs.get(photo_id),
            )
        )
    return shown


def write_top_losses(url: str, shown: list[TaggedPhoto]) -> None:
    """Write a row a photo."""
    write_table(url, pa.Table.from_pylist([vars(photo) for photo in shown], _SCHEMA))


def read_top_losses(url: str) -> list[TaggedPhoto]:
    """Read what `write_top_losses` wrote."""
    lists = ("actual", "given", "probabilities")
    rows = read_table(url).to_pylist()
    return [TaggedPhoto(**row | {name: tuple(row[name]) for name in lists}) for row in rows]
