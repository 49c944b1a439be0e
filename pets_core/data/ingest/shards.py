"""One shard: its photos read, looked at, and written as one Parquet file."""

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
from pets_core.data.dataset import compression_of, open_parquet, schema_with_classes
from pets_core.data.ingest.duplicates import perceptual_hashes
from pets_core.data.ingest.images import ImageInfo, inspect, read_orientation, upright_places
from pets_core.data.ingest.journal import is_there, load_record, save_record
from pets_core.data.ingest.plan import PlannedPhoto, planned_photos
from pets_core.data.sources.catalogue import UNKNOWN_SIZE, Box
from pets_core.data.sources.files import BATCH_FILES, Files
from pets_core.data.sources.formats import (
    NO_DECODER,
    UnreadablePhotoError,
    is_plainly_no_photo,
    missing_decoder,
    refuse_raw,
)
from pets_core.data.sources.sources import open_source
from pets_core.errors import PetsError
from pets_core.records.dataset import DatasetPlan, LeftOut, ShardInfo, ShardPlan, ShardRecord
from pets_core.records.target_spec import target_spec

__all__ = ["ANNOTATION_SIZE", "NO_BOX", "OUTSIDE", "ShardWriter", "without", "write_shard"]

Row = dict[str, Any]

OUTSIDE = "place_outside_photo"
"""Why a photo is left out whose points or box are not all on it."""
NO_BOX = "no_box"
"""Why a photo is left out whose box has no area: its corners may be exchanged."""
ANNOTATION_SIZE = "annotation_size"
"""Reason of a photo whose annotation does not say which pixels it is of."""
_NARROW = 64
"""A photo whose grey levels span less than a quarter of 256 looks almost uniform to a model."""
_OPENING = Lock()


def write_shard(config: PipelineConfig, plan: DatasetPlan, shard: ShardPlan) -> ShardRecord:
    """Write a planned shard, unless it is there; photos of an earlier version are taken from it.

    The file is named by its content and appears whole, its note in the journal after it, so that
    this may be called again after any failure, and by several processes at once.

    Raises:
        PetsError: A photo cannot be fetched, or changed since the plan was made.
    """
    if (record := load_record(plan.root, shard.key)) and is_there(plan.root, record):
        return record
    photos = planned_photos(plan, shard)
    prior = _prior_rows(plan.root, photos)
    fresh = [photo.path for photo in photos if photo.id not in prior]
    files = _files(plan.plan_url, config.model_dump_json()) if fresh else None
    left_out = []
    writer = ShardWriter(plan, config.ingest.row_group_rows)
    # The pool is this function's and not the generator's: one that is left half-way and collected
    # later, in any thread, must not wait for threads then.
    with ThreadPoolExecutor(1) as ahead:
        contents = _contents(files, fresh, ahead) if files else iter(())
        for photo in photos:
            try:
                if (row := prior.get(photo.id)) is not None:
                    size = row["width"], row["height"]
                    turn = read_orientation(row["image"]["bytes"]) if photo.annotation_size else 1
                    writer.add(row | _labels(_upright(photo, size, turn), shard, plan, size))
                    continue
                content = next(contents)
                if isinstance(content, UnreadablePhotoError):
                    raise content
                refuse_raw(photo.path)
                info = inspect(content)
                size = info.width, info.height
                labels = _labels(_upright(photo, size, info.orientation), shard, plan, size)
                writer.add(_row(photo, content) | labels, info)
            except UnreadablePhotoError as error:
                left_out.append(_refused(photo, error, plan))
    record = ShardRecord(
        key=shard.key,
        shard=writer.store(plan.root, f"{shard.split}-{shard.prefix}"),
        class_counts=dict(sorted(writer.labels.items())),
        left_out=tuple(left_out),
        num_read=len(fresh),
        num_narrow=writer.num_narrow,
    )
    save_record(plan.root, record)
    return record


def without(
    plan: DatasetPlan, shard: ShardInfo, drop: set[str], row_group_rows: int
) -> tuple[ShardInfo | None, Counter[int]]:
    """Write a shard again without some of its photos; return it with its photos of each class."""
    writer = ShardWriter(plan, row_group_rows)
    for row in _rows(storage.join(plan.root, "shards", shard.path)):
        if row["id"] not in drop:
            writer.add(row)
    return writer.store(plan.root, shard.path.rsplit("-", 1)[0]), writer.labels


class ShardWriter:
    """Builds a shard in memory; a shard's size is bounded by the plan.

    Attributes:
        labels: Photos of each class or tag so far.
        num_narrow: New photos whose grey levels span less than a quarter of the range.
    """

    def __init__(self, plan: DatasetPlan, row_group_rows: int) -> None:
        self.labels: Counter[int] = Counter()
        self.num_narrow = 0
        self._num_rows = 0
        self._schema = schema_with_classes(plan.classes, plan.targets)
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
        """Append a photo; where `info` is given, what it tells goes into the row."""
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
        """Put the shard among those in folder `root`; None when it has no photo."""
        self._flush()
        self._parquet.close()
        if not self._num_rows:
            return None
        data = self._file.getbuffer()
        digest = sha256(data).hexdigest()
        path = f"{stem}-{digest[:16]}.parquet".replace("--", "-")
        url = storage.join(root, "shards", path)
        if not storage.exists(url):
            with storage.writing(url) as file:
                file.write(data)
        return ShardInfo(path=path, num_rows=self._num_rows, num_bytes=data.nbytes, sha256=digest)

    def _flush(self) -> None:
        if self._infos:
            thumbnails = np.stack([info.thumbnail for info in self._infos])
            spans = np.ptp(thumbnails.reshape(len(thumbnails), -1), axis=1)
            self.num_narrow += int((spans < _NARROW).sum())
            hashes = perceptual_hashes(thumbnails)
            for place, info, phash in zip(self._fresh, self._infos, hashes.tolist(), strict=True):
                self._rows[place].update(width=info.width, height=info.height, phash=phash)
        if self._rows:
            self._parquet.write_table(pa.Table.from_pylist(self._rows, self._schema))
        self._rows, self._infos, self._fresh = [], [], []


def _prior_rows(root: str, photos: Iterable[PlannedPhoto]) -> Mapping[str, Row]:
    """Rows of earlier versions' shards for the photos that are in one, by id."""
    wanted = {photo.id: photo for photo in photos if photo.prior}
    found = {}
    for path in sorted({photo.prior for photo in wanted.values()}):
        url = storage.join(root, "shards", path)
        if not storage.exists(url):
            continue
        for row in _rows(url):
            photo = wanted.get(row["id"])
            if photo and photo.prior == path:
                found[photo.id] = row
    return found


def _rows(url: str) -> Iterator[Row]:
    try:
        with storage.open_read(url) as file:
            for batch in open_parquet(file).iter_batches(64):
                yield from batch.to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise PetsError(
            f"{url} is damaged ({error}): restore it, or remove it and ingest again"
        ) from error


def _files(plan_url: str, config: str) -> Files:
    """The files of a plan's source, opened once for all shards that this process writes."""
    with _OPENING:
        return _open_files(plan_url, config)


@lru_cache(maxsize=2)
def _open_files(_plan_url: str, config: str) -> Files:
    return open_source(PipelineConfig.model_validate_json(config)).files


def _contents(
    files: Files, paths: Sequence[str], ahead: Executor
) -> Iterator[bytes | UnreadablePhotoError]:
    """Read a batch at a time, the next one while the photos of this one are looked at."""
    batches = [paths[i : i + BATCH_FILES] for i in range(0, len(paths), BATCH_FILES)]
    coming = ahead.submit(_read, files, batches[0])
    for following in [*batches[1:], []]:
        batch = coming.result()
        coming = ahead.submit(_read, files, following)
        yield from batch


def _read(files: Files, paths: Sequence[str]) -> list[bytes | UnreadablePhotoError]:
    return list(files.read(paths))


def _row(photo: PlannedPhoto, data: bytes) -> Row:
    digest = sha256(data).hexdigest()
    if photo.mark.startswith("sha256:") and photo.mark != f"sha256:{digest}":
        raise PetsError(f"{photo.path} changed while the source was read: ingest again")
    return {
        "id": photo.id,
        "image": {"bytes": data, "path": photo.path.rsplit("/", 1)[-1]},
        "sha256": digest,
        "source_path": photo.path,
    }


def _labels(photo: PlannedPhoto, shard: ShardPlan, plan: DatasetPlan, size: tuple[int, int]) -> Row:
    """What may be said otherwise of the same photo, of so many pixels, in another version."""
    head_box = photo.head_box._asdict() if photo.head_box else None
    row: Row = {"label": photo.label, "head_box": head_box, "split": shard.split}
    if photo.label is not None:
        known = plan.classes[photo.label]
        return row | {"class_name": known.name, "species": known.species}
    tags = [plan.classes[index].name for index in photo.tags]
    said = tags or [f"{value:g}" for value in photo.numbers]
    row |= {"class_name": ", ".join(said), "species": None}
    spec = target_spec(plan.targets)
    if spec.is_labels:
        one_hot = [int(index in photo.tags) for index in range(len(plan.classes))]
        return row | {"tags": tags, "one_hot": one_hot}
    if spec.geometry is None:
        return row | {"numbers": photo.numbers}
    if spec.geometry == "box":
        xmin, ymin, xmax, ymax = photo.numbers
        if xmin >= xmax or ymin >= ymax:
            corners = ", ".join(f"{value:g}" for value in photo.numbers)
            raise UnreadablePhotoError(NO_BOX, f"{corners}: expected xmin < xmax and ymin < ymax")
    return row | {"numbers": _places(photo.numbers, size)}


def _places(pixels: Sequence[float], size: tuple[int, int]) -> list[float]:
    """Places x, y, x, y, ... in pixels of a photo of that width and height to -1 to 1.

    Raises:
        UnreadablePhotoError: One is not on the photo.
    """
    sides = [size[number % 2] for number in range(len(pixels))]
    if any(not 0 <= value <= side for value, side in zip(pixels, sides, strict=True)):
        places = ", ".join(f"{value:g}" for value in pixels)
        raise UnreadablePhotoError(OUTSIDE, f"{places} on a photo of {size[0]} x {size[1]} pixels")
    return [2 * value / side - 1 for value, side in zip(pixels, sides, strict=True)]


def _upright(photo: PlannedPhoto, size: tuple[int, int], orientation: int) -> PlannedPhoto:
    """The photo with its places and box in pixels of the upright photo.

    Args:
        photo: Its places and box are of pixels of `annotation_size`.
        size: Width and height of the upright photo, pixels.
        orientation: EXIF's, of the stored pixels.

    Raises:
        UnreadablePhotoError: The annotation's size does not say which pixels are meant.
    """
    annotated = photo.annotation_size
    if not annotated or (orientation == 1 and annotated in (size, UNKNOWN_SIZE)):
        return photo
    # Only where sides are exchanged does the size say which pixels are meant.
    if orientation > 4 and size[0] != size[1]:
        if annotated == size:
            return photo
        if annotated == size[::-1]:
            return _turned(photo, orientation)
    if not photo.numbers:
        return photo._replace(head_box=None)
    raise UnreadablePhotoError(
        ANNOTATION_SIZE,
        f"annotated at {annotated[0]} x {annotated[1]} pixels, the photo has {size[0]} x {size[1]} "
        f"and the EXIF orientation {orientation}, which leaves open whether its stored or its "
        "upright pixels are meant",
    )


def _turned(photo: PlannedPhoto, orientation: int) -> PlannedPhoto:
    """The photo with places and box of the stored pixels turned as these are."""
    stored = photo.annotation_size[0], photo.annotation_size[1]
    numbers = upright_places(photo.numbers, stored, orientation)
    box = None
    if photo.head_box:
        corners = upright_places(photo.head_box, stored, orientation)
        x0, y0, x1, y1 = (round(value) for value in corners)
        box = Box(min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
        if len(numbers) == 4:
            numbers = [float(side) for side in box]
    return photo._replace(numbers=tuple(numbers), head_box=box)


def _refused(photo: PlannedPhoto, error: UnreadablePhotoError, plan: DatasetPlan) -> LeftOut:
    reason, detail = error.reason, error.detail
    if reason == "not_an_image" and (remedy := missing_decoder(photo.path)):
        reason, detail = NO_DECODER, remedy
    elif reason in ("not_an_image", "empty") and is_plainly_no_photo(photo.path, detail):
        reason = "not_a_photo"
    label = "" if photo.label is None else plan.classes[photo.label].name
    return LeftOut(id=photo.id, path=photo.path, reason=reason, detail=detail, label=label)
