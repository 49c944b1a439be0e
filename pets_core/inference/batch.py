"""Predictions of many photos without labels: planned in parts, each part written once.

<output>/plan.parquet           every photo, a row group a part
<output>/predictions/           part-00000.parquet and so on
<output>/unreadable.parquet     photos that could not be looked at
<output>/skipped.parquet        files that are not photos by their names, or that a system made
<output>/summary.json           written last: all parts are there
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import BaseModel

from pets_core import storage
from pets_core.config.pipeline import PipelineConfig
from pets_core.data.dataset import open_parquet, read_table, write_table
from pets_core.data.ingest.images import decode_sized
from pets_core.data.sources.files import Files
from pets_core.data.sources.formats import UnreadablePhotoError, refuse_raw
from pets_core.data.sources.sources import open_photos
from pets_core.errors import PetsError
from pets_core.models.card import WEIGHTS, ModelCard, read_card
from pets_core.records.inference import BatchPlan, BatchSummary
from pets_core.targets.base import Predicted
from pets_core.targets.registry import get_target

__all__ = [
    "PARTS",
    "DecodedBatch",
    "PredictedPhoto",
    "commit_batch",
    "decoded_batches",
    "missing_parts",
    "part_url",
    "plan_batch",
    "read_part",
    "write_part",
]

PARTS = "predictions"
_PLAN, _SUMMARY, _UNREADABLE = "plan.parquet", "summary.json", "unreadable.parquet"
_SKIPPED = "skipped.parquet"
_SKIPPED_SCHEMA = pa.schema([("file", pa.string()), ("reason", pa.string())])
_FINGERPRINT = b"pets.fingerprint"
_FORMAT = b"2"
"""Of the parts. Those of the first version had a column breed, for classes alone."""


class PredictedPhoto(NamedTuple):
    """What a model predicts of one photo.

    Attributes:
        photo: Its path.
        size: Its width and height, pixels, upright.
        outputs: Decoded, float32 (D,).
    """

    photo: str
    size: tuple[int, int]
    outputs: NDArray[np.float32]


def plan_batch(config: PipelineConfig, model_url: str, output_url: str) -> BatchPlan:
    """List the photos and divide them into parts; where that was done before, go on with those.

    Args:
        config: Source and size of a part.
        model_url: The model's folder.
        output_url: Folder of the results.

    Raises:
        PetsError: There are no photos, no model, or the folder holds other results.
    """
    model_url, output_url = storage.absolute(model_url), storage.absolute(output_url)
    url, size = storage.join(output_url, _PLAN), config.batch.part_photos
    fingerprint = _fingerprint(config, model_url)
    if storage.exists(url):
        # Photos that came since belong to the next batch.
        table = read_table(url)
        if table.schema.metadata[_FINGERPRINT].decode() != fingerprint:
            raise PetsError(
                f"{output_url}: holds predictions by another model or version, of another source "
                "or in parts of another size: give another folder"
            )
    else:
        _, photos, others = open_photos(config)
        if not photos:
            raise PetsError(f"source.url = {config.source.url}: no photos lie there")
        skipped = {
            "file": [other.path for other in others],
            "reason": [other.refusal or "not_a_photo" for other in others],
        }
        write_table(
            storage.join(output_url, _SKIPPED), pa.table(skipped, _SKIPPED_SCHEMA), setting="--to"
        )
        columns = {"photo": [p.path for p in photos], "refusal": [p.refusal for p in photos]}
        table = pa.table(columns).replace_schema_metadata({_FINGERPRINT: fingerprint.encode()})
        write_table(url, table, row_group_rows=size, setting="--to")
    return BatchPlan(
        model_url=model_url,
        url=output_url,
        num_photos=table.num_rows,
        num_parts=-(-table.num_rows // size),
    )


def _fingerprint(config: PipelineConfig, model_url: str) -> str:
    """Of all that the predictions depend on but the photos themselves."""
    card = read_card(model_url)
    digest = hashlib.sha256(_told(card).encode())
    digest.update(_FORMAT)
    decision = get_target(card.targets).read_decision(card, model_url)
    digest.update(decision.model_dump_json().encode() if decision else b"")
    digest.update(storage.read_bytes(storage.join(model_url, WEIGHTS)))
    digest.update(_told(config.source).encode())
    digest.update(str(config.batch.part_photos).encode())
    return digest.hexdigest()


def _told(settings: BaseModel) -> str:
    """As JSON, without what is left as it is: a later version has settings that this has not."""
    return settings.model_dump_json(exclude_defaults=True)


def part_url(plan: BatchPlan, number: int) -> str:
    """Where a part's predictions lie."""
    return storage.join(plan.url, PARTS, f"part-{number:05}.parquet")


def missing_parts(plan: BatchPlan, parts: Sequence[int]) -> list[int]:
    """Those of some parts that are still to be predicted."""
    there = storage.list_folder(storage.join(plan.url, PARTS))
    return [n for n in parts if part_url(plan, n).rsplit("/", 1)[-1] not in there]


def read_part(plan: BatchPlan, number: int) -> dict[str, str]:
    """The photos of a part in order, and why one must not be read, where that is so."""
    with storage.open_read(storage.join(plan.url, _PLAN)) as file:
        table = open_parquet(file).read_row_group(number)
    return dict(zip(table["photo"].to_pylist(), table["refusal"].to_pylist(), strict=True))


class DecodedBatch(NamedTuple):
    """Photos of a part that are predicted together.

    Attributes:
        photos: Paths of B photos, fewer than a batch where some are unreadable.
        sizes: Their widths and heights, pixels, upright.
        pixels: uint8 (B, R, R, 3).
        errors: What is wrong with others, by path.
    """

    photos: list[str]
    sizes: list[tuple[int, int]]
    pixels: NDArray[np.uint8]
    errors: dict[str, str]


def decoded_batches(
    files: Files, photos: dict[str, str], size: int, *, batch_size: int, num_threads: int
) -> Iterator[DecodedBatch]:
    """Read and decode photos, a batch ahead of the one that is predicted.

    Args:
        files: The source.
        photos: Each photo's path, and why it must not be read.
        size: Side R of the square they are decoded to, pixels.
        batch_size: Photos of a batch.
        num_threads: That decode.
    """
    good = [path for path, refusal in photos.items() if not refusal]
    batches = [good[i : i + batch_size] for i in range(0, len(good), batch_size)]
    unread = {path: refusal.replace("_", " ") for path, refusal in photos.items() if refusal}
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(num_threads) as decoders:
        read = partial(_read_batch, files, size, decoders)
        coming = [reader.submit(read, batch) for batch in batches[:1]]
        for number in range(len(batches)):
            if number + 1 < len(batches):
                coming.append(reader.submit(read, batches[number + 1]))
            batch = coming.pop(0).result()
            yield batch._replace(errors=batch.errors | (unread if number == 0 else {}))
    if not batches:
        yield DecodedBatch([], [], np.empty((0, size, size, 3), np.uint8), unread)


def _read_batch(
    files: Files, size: int, decoders: ThreadPoolExecutor, paths: list[str]
) -> DecodedBatch:
    def decoded(
        path: str, data: bytes | UnreadablePhotoError
    ) -> tuple[NDArray[np.uint8], tuple[int, int]] | UnreadablePhotoError:
        if isinstance(data, UnreadablePhotoError):
            return data
        try:
            refuse_raw(path)
            return decode_sized(data, size)
        except UnreadablePhotoError as error:
            return error

    photos, sizes, pixels, errors = [], [], [], {}
    for path, found in zip(paths, decoders.map(decoded, paths, _read(files, paths)), strict=True):
        if isinstance(found, UnreadablePhotoError):
            errors[path] = f"{found.reason.replace('_', ' ')}: {found.detail}"
            continue
        photos.append(path)
        pixels.append(found[0])
        sizes.append(found[1])
    empty = np.empty((0, size, size, 3), np.uint8)
    return DecodedBatch(photos, sizes, np.stack(pixels) if pixels else empty, errors)


def _read(files: Files, paths: list[str]) -> list[bytes | UnreadablePhotoError]:
    """Bytes of photos; one that has gone since it was listed spoils no other."""
    try:
        return list(files.read(paths))
    except PetsError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        if len(paths) == 1:
            return [UnreadablePhotoError("missing", "it has gone since the photos were listed")]
    return [read for path in paths for read in _read(files, [path])]


def write_part(
    plan: BatchPlan,
    number: int,
    card: ModelCard,
    photos: Sequence[str],
    predicted: Sequence[PredictedPhoto],
    errors: dict[str, str],
) -> None:
    """Write the predictions of a part, whole or not at all.

    Columns: `photo`, those of the kind of target (`Target.batch_columns`), and `error`, which says
    why a photo could not be predicted; then the others are null.

    Args:
        plan: The plan.
        number: Of the part.
        card: The model's.
        photos: All of the part, in order.
        predicted: Those that were predicted, in any order.
        errors: Why the others were not.
    """
    target = get_target(card.targets)
    rows = {each.photo: row for row, each in enumerate(predicted)}
    outputs = np.stack([each.outputs for each in predicted]) if predicted else None
    if outputs is None:
        outputs = np.empty((0, card.num_outputs), np.float32)
    sizes = np.array([each.size for each in predicted], np.int64).reshape(-1, 2)
    decision = target.read_decision(card, plan.model_url)
    columns = target.batch_columns(Predicted(card, outputs, sizes, decision))
    order = pa.array([rows.get(photo) for photo in photos], pa.int64())
    table = pa.table(
        {
            "photo": pa.array(photos, pa.string()),
            **{name: column.take(order) for name, column in columns.items()},
            "error": pa.array([errors.get(photo) for photo in photos], pa.string()),
        }
    )
    vocabulary = "\n".join(info.name for info in card.numbers or card.classes)
    about = {"targets": card.targets, "vocabulary": vocabulary, "model": plan.model_url}
    write_table(part_url(plan, number), table.replace_schema_metadata(about), setting="--to")


def commit_batch(plan: BatchPlan, *, num_predicted: int, seconds: float) -> BatchSummary:
    """See that each photo is there once, list those not looked at, and say that all is done.

    Args:
        plan: The plan.
        num_predicted: Photos predicted by this attempt.
        seconds: It took.

    Raises:
        RuntimeError: Photos are missing or there twice.
    """
    planned = read_table(storage.join(plan.url, _PLAN), ["photo"])["photo"]
    photos: list[str] = []
    counts: Counter[str] = Counter()
    target = get_target(read_card(plan.model_url).targets)
    unreadable: list[dict[str, str]] = []
    for number in range(plan.num_parts):
        part = read_table(part_url(plan, number))
        photos += part["photo"].to_pylist()
        counts.update(target.count_labels(part))
        failed = part.filter(pc.is_valid(part["error"])).select(["photo", "error"])
        unreadable += failed.to_pylist()
    if photos != planned.to_pylist():
        raise RuntimeError(f"{plan.url}: not every photo of the plan was predicted exactly once")
    schema = pa.schema([("photo", pa.string()), ("error", pa.string())])
    write_table(
        storage.join(plan.url, _UNREADABLE),
        pa.Table.from_pylist(unreadable, schema=schema),
        setting="--to",
    )
    summary = BatchSummary(
        model_url=plan.model_url,
        url=plan.url,
        num_photos=plan.num_photos,
        num_skipped=read_table(storage.join(plan.url, _SKIPPED)).num_rows,
        num_unreadable=len(unreadable),
        counts=dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))),
        unreadable=tuple((row["photo"], row["error"]) for row in unreadable[:500]),
        photos_per_second=num_predicted / seconds if num_predicted else 0.0,
    )
    text = summary.model_dump_json()
    storage.write_bytes(storage.join(plan.url, _SUMMARY), text.encode(), "--to")
    return summary
