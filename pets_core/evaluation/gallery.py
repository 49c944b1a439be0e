"""The photos worth looking at, small, from the data set that was judged."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pets_core.data.dataset import load_manifest, read_table, write_table
from pets_core.data.gallery import thumbnails
from pets_core.errors import PetsError, telling
from pets_core.evaluation.predictions import Predictions
from pets_core.records.evaluation import ConfusedPair, LabelIssue

__all__ = ["Gallery", "Picture", "collect", "photos", "read_gallery", "write_gallery"]

_log = logging.getLogger(__name__)
_NUM_PHOTOS, _NUM_PAIRS, _PHOTOS_A_PAIR = 16, 10, 8
_SIDE = 160


@dataclass(frozen=True)
class Picture:
    """A photo and what the model said of it.

    Attributes:
        photo_id: Its id in the data set.
        actual: Its class.
        predicted: The most probable class.
        probability: Of that, 0 to 1.
        loss: Cross-entropy, nats.
        jpeg: The photo, small; None where the data set is out of reach.
        map_jpeg: Where the model looked; None where nobody asked.
    """

    photo_id: str
    actual: str
    predicted: str
    probability: float
    loss: float
    jpeg: bytes | None = None
    map_jpeg: bytes | None = None


@dataclass(frozen=True)
class Gallery:
    """What is shown, each part with what is worst first.

    Attributes:
        top_losses: Photos of greatest loss.
        confident_errors: Wrong ones that the model was surest of.
        pairs: Photos of the pairs confused most, in the order of the pairs.
        label_issues: Photos whose label is probably wrong.
    """

    top_losses: tuple[Picture, ...] = ()
    confident_errors: tuple[Picture, ...] = ()
    pairs: tuple[Picture, ...] = ()
    label_issues: tuple[Picture, ...] = ()


def collect(
    predictions: Predictions,
    validation: Predictions | None,
    pairs: Sequence[ConfusedPair],
    issues: Sequence[LabelIssue],
    maps_url: str | None,
) -> Gallery:
    """Choose photos and fetch them.

    Args:
        predictions: Of the photos judged.
        validation: Of those that labels were looked for in.
        pairs: Most frequent first.
        issues: The likeliest first.
        maps_url: Parquet file with a map for each of some photo ids, if there is one.
    """
    errors = np.flatnonzero(predictions.wrong)
    sure = errors[np.argsort(-predictions.confidence[errors], kind="stable")]
    worst = np.argsort(-predictions.losses, kind="stable")
    rows = {
        "top_losses": worst[:_NUM_PHOTOS].tolist(),
        "confident_errors": sure[:_NUM_PHOTOS].tolist(),
        "pairs": list(_rows_of_pairs(predictions, pairs[:_NUM_PAIRS])),
    }
    found = {part: [_picture(predictions, row) for row in chosen] for part, chosen in rows.items()}
    if validation:
        place = {photo: row for row, photo in enumerate(validation.ids)}
        listed = [place[issue.id] for issue in issues[:_NUM_PHOTOS]]
        found["label_issues"] = [_picture(validation, row) for row in listed]
    ids = {picture.photo_id for pictures in found.values() for picture in pictures}
    jpegs = photos(predictions.info.dataset_url, ids, _SIDE)
    maps = _maps(maps_url)
    return Gallery(**{
        part: tuple(_with_jpegs(picture, jpegs, maps if part == "top_losses" else {})
                    for picture in pictures)
        for part, pictures in found.items()
    })  # fmt: skip


def _rows_of_pairs(predictions: Predictions, pairs: Sequence[ConfusedPair]) -> Iterable[int]:
    place = {name: index for index, name in enumerate(predictions.names)}
    for pair in pairs:
        own = predictions.targets == place[pair.actual]
        rows = np.flatnonzero(own & (predictions.predicted == place[pair.predicted]))
        yield from rows[np.argsort(-predictions.confidence[rows], kind="stable")][:_PHOTOS_A_PAIR]


def _picture(predictions: Predictions, row: int) -> Picture:
    names = predictions.names
    return Picture(
        photo_id=predictions.ids[row],
        actual=names[int(predictions.targets[row])],
        predicted=names[int(predictions.predicted[row])],
        probability=float(predictions.confidence[row]),
        loss=float(predictions.losses[row]),
    )


def _with_jpegs(picture: Picture, jpegs: dict[str, bytes], maps: dict[str, bytes]) -> Picture:
    photo = picture.photo_id
    return Picture(**vars(picture) | {"jpeg": jpegs.get(photo), "map_jpeg": maps.get(photo)})


def photos(dataset_url: str, ids: Iterable[str], side: int) -> dict[str, bytes]:
    """Thumbnails by id; none where the version of the data set is not in reach.

    Args:
        dataset_url: Folder of the version.
        ids: Which photos.
        side: Longer side of a thumbnail, pixels.
    """
    try:
        with telling(f"photos of {dataset_url}"):
            return thumbnails(load_manifest(dataset_url), ids, side)
    except PetsError as error:
        _log.warning("the galleries go without photos: %s", error)
        return {}


def _maps(url: str | None) -> dict[str, bytes]:
    if url is None:
        return {}
    table = read_table(url, ["id", "jpeg"])
    return dict(zip(table["id"].to_pylist(), table["jpeg"].to_pylist(), strict=True))


def write_gallery(url: str, gallery: Gallery) -> None:
    """Write a row a picture, its part of the gallery in the first column."""
    rows = [
        {"part": part, **vars(picture)}
        for part, pictures in vars(gallery).items()
        for picture in pictures
    ]
    write_table(url, pa.Table.from_pylist(rows, _SCHEMA))


def read_gallery(url: str) -> Gallery:
    """Read what `write_gallery` wrote."""
    parts: dict[str, list[Picture]] = {part: [] for part in vars(Gallery())}
    for row in read_table(url).to_pylist():
        parts[row.pop("part")].append(Picture(**row))
    return Gallery(**{part: tuple(pictures) for part, pictures in parts.items()})


_SCHEMA = pa.schema(
    [("part", pa.string()), ("photo_id", pa.string()), ("actual", pa.string()),
     ("predicted", pa.string()), ("probability", pa.float64()), ("loss", pa.float64()),
     ("jpeg", pa.binary()), ("map_jpeg", pa.binary())]
)  # fmt: skip
