"""Read and validate the photos of a shard and write them to one Parquet file."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import lru_cache
from hashlib import sha256
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pets_core import storage
from pets_core.config.pipeline import PipelineConfig
from pets_core.data.dataset import compression_of, open_parquet, schema_with_vocabulary
from pets_core.data.ingest.duplicates import perceptual_hashes
from pets_core.data.ingest.images import ImageInfo, inspect, read_orientation, upright_points
from pets_core.data.ingest.journal import is_stored, load_record, save_record
from pets_core.data.ingest.partition import PlannedPhoto
from pets_core.data.ingest.plan import load_planned_photos
from pets_core.data.sources.catalogue import UNKNOWN_SIZE, Box
from pets_core.data.sources.files import BATCH_FILES, Files
from pets_core.data.sources.formats import (
    NO_DECODER,
    UnreadablePhotoError,
    is_clearly_not_photo,
    refuse_raw,
    remedy_by_suffix,
)
from pets_core.data.sources.sources import open_source
from pets_core.errors import PetsError
from pets_core.records.dataset import (
    DatasetPlan,
    QuarantinedFile,
    ShardInfo,
    ShardPlan,
    ShardRecord,
)
from pets_core.records.target_spec import target_spec
from pets_core.storage.layout import SHARDS

__all__ = [
    "ANNOTATION_SIZE",
    "NO_BOX",
    "OUTSIDE_PHOTO",
    "ShardWriter",
    "rewrite_without",
    "write_shard",
]

Row = dict[str, Any]

OUTSIDE_PHOTO = "point_outside_photo"
"""Reason code of a photo with a keypoint or box outside its borders."""
NO_BOX = "no_box"
"""Reason code of a photo with an empty box; its corners may be swapped."""
ANNOTATION_SIZE = "annotation_size"
"""Reason code of a photo whose annotation may refer to the stored or to the upright pixels."""
_MIN_GREY_SPAN = 64
"""Photos whose grey levels span less (a quarter of 256) look almost uniform to a model."""
_OPEN_LOCK = Lock()


def write_shard(config: PipelineConfig, plan: DatasetPlan, shard: ShardPlan) -> ShardRecord:
    """Write a planned shard unless it exists; reuse photos of existing shards.

    The file is named by its content and written atomically, and then recorded in the journal. So
    this is safe to call again after any failure, and from several processes at once.

    Raises:
        PetsError: A photo cannot be read, or changed after it was planned.
    """
    if (record := load_record(plan.root, shard.key)) and is_stored(plan.root, record):
        return record
    photos = load_planned_photos(plan, shard)
    existing = _load_existing_rows(plan.root, photos)
    fresh = [photo.path for photo in photos if photo.id not in existing]
    files = _files(plan.plan_url, config.model_dump_json()) if fresh else None
    quarantined = []
    writer = ShardWriter(plan, config.ingest.row_group_rows)
    # The function owns the pool, not the generator: an unfinished generator may be collected later,
    # in any thread, and must not wait for threads then.
    with ThreadPoolExecutor(1) as ahead:
        contents = _read_ahead(files, fresh, ahead) if files else iter(())
        for photo in photos:
            try:
                if (row := existing.get(photo.id)) is not None:
                    size = row["width"], row["height"]
                    turn = read_orientation(row["image"]["bytes"]) if photo.annotation_size else 1
                    writer.add(row | _labels(_to_upright(photo, size, turn), shard, plan, size))
                    continue
                content = next(contents)
                if isinstance(content, UnreadablePhotoError):
                    raise content
                refuse_raw(photo.path)
                info = inspect(content)
                upright = _to_upright(photo, info.size, info.orientation)
                labels = _labels(upright, shard, plan, info.size)
                writer.add(_photo_columns(photo, content) | labels, info)
            except UnreadablePhotoError as error:
                quarantined.append(_to_quarantine(photo, error, plan))
    record = ShardRecord(
        key=shard.key,
        shard=writer.store(plan.root, f"{shard.split}-{shard.prefix}"),
        class_counts=dict(sorted(writer.labels.items())),
        quarantined=tuple(quarantined),
        num_read=len(fresh),
        num_low_contrast=writer.num_low_contrast,
    )
    save_record(plan.root, record)
    return record


def rewrite_without(
    plan: DatasetPlan, shard: ShardInfo, drop: set[str], row_group_rows: int
) -> tuple[ShardInfo | None, Counter[int]]:
    """Rewrite a shard without the photos in `drop`.

    Returns:
        The new shard, None if it would be empty, and its number of photos of each class or tag.
    """
    writer = ShardWriter(plan, row_group_rows)
    for row in _read_rows(storage.join(plan.root, SHARDS, shard.path)):
        if row["id"] not in drop:
            writer.add(row)
    return writer.store(plan.root, shard.path.rsplit("-", 1)[0]), writer.labels


class ShardWriter:
    """Builds a shard in memory; the plan bounds its size.

    Attributes:
        labels: Number of photos of each class or tag.
        num_low_contrast: Number of new photos with low contrast: grey levels that span less than a
            quarter of the range.
    """

    def __init__(self, plan: DatasetPlan, row_group_rows: int) -> None:
        self.labels: Counter[int] = Counter()
        self.num_low_contrast = 0
        self._num_rows = 0
        self._schema = schema_with_vocabulary(plan.vocabulary, plan.targets)
        self._row_group_rows = row_group_rows
        self._rows: list[Row] = []
        self._infos: list[ImageInfo] = []
        self._fresh: list[int] = []
        self._file = io.BytesIO()
        self._parquet = pq.ParquetWriter(
            self._file,
            self._schema,
            compression=compression_of(self._schema),
            write_page_checksum=True,
        )

    def add(self, row: Row, info: ImageInfo | None = None) -> None:
        """Append a photo; size and hash are computed from `info` if given."""
        if info is not None:
            self._fresh.append(len(self._rows))
            self._infos.append(info)
        self._rows.append(row)
        self._num_rows += 1
        if row["label"] is not None:
            self.labels[row["label"]] += 1
        self.labels.update(np.flatnonzero(row.get("one_hot", ())).tolist())
        if len(self._rows) == self._row_group_rows:
            self._flush()

    def store(self, root: str, stem: str) -> ShardInfo | None:
        """Write the shard to the data set in folder `root`; return None if it has no photos."""
        self._flush()
        self._parquet.close()
        if not self._num_rows:
            return None
        data = self._file.getbuffer()
        digest = sha256(data).hexdigest()
        path = f"{stem}-{digest[:16]}.parquet".replace("--", "-")
        url = storage.join(root, SHARDS, path)
        if not storage.exists(url):
            with storage.writing(url) as file:
                file.write(data)
        return ShardInfo(path=path, num_rows=self._num_rows, num_bytes=data.nbytes, sha256=digest)

    def _flush(self) -> None:
        if self._infos:
            thumbnails = np.stack([info.thumbnail for info in self._infos])
            spans = np.ptp(thumbnails.reshape(len(thumbnails), -1), axis=1)
            self.num_low_contrast += int((spans < _MIN_GREY_SPAN).sum())
            hashes = perceptual_hashes(thumbnails)
            for index, info, phash in zip(self._fresh, self._infos, hashes.tolist(), strict=True):
                width, height = info.size
                self._rows[index].update(width=width, height=height, phash=phash)
        if self._rows:
            self._parquet.write_table(pa.Table.from_pylist(self._rows, self._schema))
        self._rows, self._infos, self._fresh = [], [], []


def _load_existing_rows(root: str, photos: Iterable[PlannedPhoto]) -> Mapping[str, Row]:
    """Return the rows, by photo id, of the photos that existing shards hold."""
    wanted = {photo.id: photo for photo in photos if photo.existing_shard}
    found = {}
    for path in sorted({photo.existing_shard for photo in wanted.values()}):
        url = storage.join(root, SHARDS, path)
        if not storage.exists(url):
            continue
        for row in _read_rows(url):
            photo = wanted.get(row["id"])
            if photo and photo.existing_shard == path:
                found[photo.id] = row
    return found


def _read_rows(url: str) -> Iterator[Row]:
    try:
        with storage.open_read(url) as file:
            for batch in open_parquet(file).iter_batches(64):
                yield from batch.to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise PetsError(
            f"{url} is damaged ({error}): restore it, or remove it and ingest again"
        ) from error


def _files(plan_url: str, config: str) -> Files:
    """Return the files of a plan's source, opened once per process."""
    with _OPEN_LOCK:
        return _open_files(plan_url, config)


@lru_cache(maxsize=2)
def _open_files(_plan_url: str, config: str) -> Files:
    return open_source(PipelineConfig.model_validate_json(config)).files


def _read_ahead(
    files: Files, paths: Sequence[str], ahead: Executor
) -> Iterator[bytes | UnreadablePhotoError]:
    """Yield file contents, reading the next batch in the background."""
    batches = [paths[i : i + BATCH_FILES] for i in range(0, len(paths), BATCH_FILES)]
    reading = ahead.submit(_read_batch, files, batches[0])
    for following in [*batches[1:], []]:
        batch = reading.result()
        reading = ahead.submit(_read_batch, files, following)
        yield from batch


def _read_batch(files: Files, paths: Sequence[str]) -> list[bytes | UnreadablePhotoError]:
    return list(files.read(paths))


def _photo_columns(photo: PlannedPhoto, data: bytes) -> Row:
    digest = sha256(data).hexdigest()
    if photo.version_tag.startswith("sha256:") and photo.version_tag != f"sha256:{digest}":
        raise PetsError(f"{photo.path} changed during the ingest: ingest again")
    return {
        "id": photo.id,
        "image": {"bytes": data, "path": photo.path.rsplit("/", 1)[-1]},
        "sha256": digest,
        "source_path": photo.path,
    }


def _labels(photo: PlannedPhoto, shard: ShardPlan, plan: DatasetPlan, size: tuple[int, int]) -> Row:
    """Return target, box and split of an upright photo: columns that differ between versions.

    Raises:
        UnreadablePhotoError: The target box is empty, or a coordinate is outside the photo.
    """
    head_box = photo.head_box._asdict() if photo.head_box else None
    row: Row = {"label": photo.label, "head_box": head_box, "split": shard.split}
    if photo.label is not None:
        known = plan.vocabulary[photo.label]
        return row | {"target_text": known.name, "species": known.species}
    tags = [plan.vocabulary[index].name for index in photo.tags]
    values = tags or [f"{value:g}" for value in photo.numbers]
    row |= {"target_text": ", ".join(values), "species": None}
    spec = target_spec(plan.targets)
    if spec.is_labels:
        one_hot = [int(index in photo.tags) for index in range(len(plan.vocabulary))]
        return row | {"tags": tags, "one_hot": one_hot}
    if spec.geometry is None:
        return row | {"numbers": photo.numbers}
    if spec.geometry == "box":
        xmin, ymin, xmax, ymax = photo.numbers
        if xmin >= xmax or ymin >= ymax:
            corners = ", ".join(f"{value:g}" for value in photo.numbers)
            raise UnreadablePhotoError(NO_BOX, f"{corners}: expected xmin < xmax and ymin < ymax")
    return row | {"numbers": _scale_coordinates(photo.numbers, size)}


def _scale_coordinates(pixels: Sequence[float], size: tuple[int, int]) -> list[float]:
    """Scale coordinates x, y, x, y, ... from pixels of a photo of `size` to [-1, 1].

    Raises:
        UnreadablePhotoError: A coordinate is outside the photo.
    """
    sides = [size[index % 2] for index in range(len(pixels))]
    if any(not 0 <= value <= side for value, side in zip(pixels, sides, strict=True)):
        listed = ", ".join(f"{value:g}" for value in pixels)
        detail = f"{listed} on a photo of {size[0]} x {size[1]} pixels"
        raise UnreadablePhotoError(OUTSIDE_PHOTO, detail)
    return [2 * value / side - 1 for value, side in zip(pixels, sides, strict=True)]


def _to_upright(photo: PlannedPhoto, size: tuple[int, int], orientation: int) -> PlannedPhoto:
    """Return the photo with coordinates and box in pixels of the upright photo.

    Args:
        photo: Photo with coordinates and box in pixels of `annotation_size`.
        size: Width and height of the upright photo, pixels.
        orientation: EXIF orientation of the stored pixels.

    Raises:
        UnreadablePhotoError: The annotation's size does not determine which pixels it refers to.
    """
    annotated = photo.annotation_size
    if not annotated or (orientation == 1 and annotated in (size, UNKNOWN_SIZE)):
        return photo
    # The size determines the pixels only if the orientation swaps unequal sides.
    if orientation > 4 and size[0] != size[1]:
        if annotated == size:
            return photo
        if annotated == size[::-1]:
            return _rotate(photo, orientation)
    if not photo.numbers:
        return photo._replace(head_box=None)
    raise UnreadablePhotoError(
        ANNOTATION_SIZE,
        f"annotated at {annotated[0]} x {annotated[1]} pixels, the photo has {size[0]} x {size[1]} "
        f"and the EXIF orientation {orientation}, which leaves open whether its stored or its "
        "upright pixels are meant",
    )


def _rotate(photo: PlannedPhoto, orientation: int) -> PlannedPhoto:
    """Return the photo with coordinates and box converted from stored to upright pixels."""
    stored = photo.annotation_size[0], photo.annotation_size[1]
    numbers = upright_points(photo.numbers, stored, orientation)
    box = None
    if photo.head_box:
        corners = upright_points(photo.head_box, stored, orientation)
        x0, y0, x1, y1 = (round(value) for value in corners)
        box = Box(min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
        if len(numbers) == 4:
            numbers = [float(side) for side in box]
    return photo._replace(numbers=tuple(numbers), head_box=box)


def _to_quarantine(
    photo: PlannedPhoto, error: UnreadablePhotoError, plan: DatasetPlan
) -> QuarantinedFile:
    reason, detail = error.reason, error.detail
    if reason == "not_an_image" and (remedy := remedy_by_suffix(photo.path)):
        reason, detail = NO_DECODER, remedy
    elif reason in ("not_an_image", "empty") and is_clearly_not_photo(photo.path, detail):
        reason = "not_a_photo"
    label = "" if photo.label is None else plan.vocabulary[photo.label].name
    return QuarantinedFile(id=photo.id, path=photo.path, reason=reason, detail=detail, label=label)
