"""Batch prediction of photos without labels: planned in parts, each part written once.

<output>/plan.parquet           all photos, one row group per part
<output>/predictions/           part-00000.parquet and so on
<output>/unreadable.parquet     photos that could not be predicted
<output>/skipped.parquet        files that are not photos by name, hidden files, system files
<output>/summary.json           written last; its presence means that all parts are complete
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
from pets_core.inference.predict import DecodedPhoto
from pets_core.models.card import WEIGHTS, ModelCard, read_card
from pets_core.records.base import Resize
from pets_core.records.inference import BatchPlan, BatchSummary
from pets_core.targets.base import DecodedOutputs
from pets_core.targets.registry import get_target

__all__ = [
    "PARTS",
    "PredictedPhoto",
    "commit_batch",
    "decode_batches",
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
"""Version of the parts' format. Version 1 had a column `breed` and supported classes only."""


class PredictedPhoto(NamedTuple):
    """A model's outputs for one photo.

    Attributes:
        photo: Path.
        size: Width and height of the upright photo, pixels.
        outputs: Decoded outputs, float32 (D,).
    """

    photo: str
    size: tuple[int, int]
    outputs: NDArray[np.float32]


def plan_batch(config: PipelineConfig, model_url: str, output_url: str) -> BatchPlan:
    """List the photos and divide them into parts, or return the folder's existing plan.

    Args:
        config: Source and part size.
        model_url: Model folder.
        output_url: Folder of the results.

    Raises:
        PetsError: There are no photos, no model, or the folder contains other results.
    """
    model_url, output_url = storage.absolute(model_url), storage.absolute(output_url)
    url, size = storage.join(output_url, _PLAN), config.batch.part_photos
    fingerprint = _fingerprint(config, model_url)
    if storage.exists(url):
        # Photos added since belong to the next batch.
        table = read_table(url)
        if table.schema.metadata[_FINGERPRINT].decode() != fingerprint:
            raise PetsError(
                f"{output_url}: contains predictions of another model, model version, source or "
                "batch.part_photos: use another folder"
            )
    else:
        _, photos, others = open_photos(config)
        if not photos:
            raise PetsError(f"source.url = {config.source.url}: no photos found")
        skipped = {
            "file": [other.path for other in others],
            "reason": [other.skip_reason or "not_a_photo" for other in others],
        }
        write_table(
            storage.join(output_url, _SKIPPED), pa.table(skipped, _SKIPPED_SCHEMA), setting="--to"
        )
        columns = {
            "photo": [p.path for p in photos],
            "skip_reason": [p.skip_reason for p in photos],
        }
        table = pa.table(columns).replace_schema_metadata({_FINGERPRINT: fingerprint.encode()})
        write_table(url, table, row_group_rows=size, setting="--to")
    return BatchPlan(
        model_url=model_url,
        url=output_url,
        num_photos=table.num_rows,
        num_parts=-(-table.num_rows // size),
    )


def _fingerprint(config: PipelineConfig, model_url: str) -> str:
    """Return a hash of everything that the predictions depend on, except the photos."""
    card = read_card(model_url)
    digest = hashlib.sha256(_settings_json(card).encode())
    digest.update(_FORMAT)
    decision = get_target(card.targets).read_decision(card, model_url)
    digest.update(decision.model_dump_json().encode() if decision else b"")
    digest.update(storage.read_bytes(storage.join(model_url, WEIGHTS)))
    digest.update(_settings_json(config.source).encode())
    digest.update(str(config.batch.part_photos).encode())
    return digest.hexdigest()


def _settings_json(settings: BaseModel) -> str:
    """Return JSON without defaults, so that settings added in a later version do not change it."""
    return settings.model_dump_json(exclude_defaults=True)


def part_url(plan: BatchPlan, number: int) -> str:
    """Return the URL of a part's predictions."""
    return storage.join(plan.url, PARTS, f"part-{number:05}.parquet")


def missing_parts(plan: BatchPlan, parts: Sequence[int]) -> list[int]:
    """Return the parts that have no predictions yet."""
    existing = storage.list_folder(storage.join(plan.url, PARTS))
    return [n for n in parts if part_url(plan, n).rsplit("/", 1)[-1] not in existing]


def read_part(plan: BatchPlan, number: int) -> dict[str, str]:
    """Return the skip reason of each photo of a part, in order; empty for photos to read."""
    with storage.open_read(storage.join(plan.url, _PLAN)) as file:
        # By position: earlier versions called the second column "refusal".
        photos, skip_reasons = open_parquet(file).read_row_group(number).columns
    return dict(zip(photos.to_pylist(), skip_reasons.to_pylist(), strict=True))


def decode_batches(
    files: Files,
    paths: Sequence[str],
    size: int,
    *,
    resize: Resize = "squish",
    batch_size: int,
    num_threads: int,
) -> Iterator[list[DecodedPhoto]]:
    """Read and decode photos in batches, one batch ahead of the caller.

    Args:
        files: The source.
        paths: Paths of the photos.
        size: Side R of the square to decode to, pixels.
        resize: How to make photos squares.
        batch_size: Photos per batch.
        num_threads: Number of decoding threads.
    """
    batches = [paths[i : i + batch_size] for i in range(0, len(paths), batch_size)]
    decode = partial(_decode, size, resize)
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(num_threads) as decoders:

        def read(batch: Sequence[str]) -> list[DecodedPhoto]:
            return list(decoders.map(decode, batch, _read(files, batch)))

        pending = [reader.submit(read, batch) for batch in batches[:1]]
        for number in range(len(batches)):
            if number + 1 < len(batches):
                pending.append(reader.submit(read, batches[number + 1]))
            yield pending.pop(0).result()


def _decode(
    size: int, resize: Resize, path: str, data: bytes | UnreadablePhotoError
) -> DecodedPhoto:
    if isinstance(data, UnreadablePhotoError):
        return DecodedPhoto(path, error=data.text)
    try:
        refuse_raw(path)
        return DecodedPhoto(path, *decode_sized(data, size, resize))
    except UnreadablePhotoError as error:
        return DecodedPhoto(path, error=error.text)


def _read(files: Files, paths: Sequence[str]) -> list[bytes | UnreadablePhotoError]:
    """Read photos; a photo deleted since it was listed yields an error, the others their bytes."""
    try:
        return list(files.read(paths))
    except PetsError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        if len(paths) == 1:
            return [UnreadablePhotoError("missing", "deleted after the photos were listed")]
    return [read for path in paths for read in _read(files, [path])]


def write_part(
    plan: BatchPlan,
    number: int,
    card: ModelCard,
    photos: Sequence[str],
    predicted: Sequence[PredictedPhoto],
    errors: dict[str, str],
) -> None:
    """Write the predictions of a part atomically.

    Columns: `photo`, those of the kind of target (`Target.batch_columns`), and `error`, the reason
    why a photo could not be predicted, in which case the other columns are null.

    Args:
        plan: The plan.
        number: Number of the part.
        card: Card of the model.
        photos: All photos of the part, in order.
        predicted: Predicted photos, in any order.
        errors: Error message of each other photo, by path.
    """
    target = get_target(card.targets)
    rows = {each.photo: row for row, each in enumerate(predicted)}
    outputs = np.stack([each.outputs for each in predicted]) if predicted else None
    if outputs is None:
        outputs = np.empty((0, card.num_outputs), np.float32)
    sizes = np.array([each.size for each in predicted], np.int64).reshape(-1, 2)
    decision = target.read_decision(card, plan.model_url)
    columns = target.batch_columns(DecodedOutputs(card, outputs, sizes, decision))
    order = pa.array([rows.get(photo) for photo in photos], pa.int64())
    table = pa.table(
        {
            "photo": pa.array(photos, pa.string()),
            **{name: column.take(order) for name, column in columns.items()},
            "error": pa.array([errors.get(photo) for photo in photos], pa.string()),
        }
    )
    vocabulary = "\n".join(info.name for info in card.numbers or card.vocabulary)
    metadata = {"targets": card.targets, "vocabulary": vocabulary, "model": plan.model_url}
    write_table(part_url(plan, number), table.replace_schema_metadata(metadata), setting="--to")


def commit_batch(plan: BatchPlan, *, num_predicted: int, seconds: float) -> BatchSummary:
    """Check that each photo is predicted once; write unreadable.parquet and summary.json.

    Args:
        plan: The plan.
        num_predicted: Number of photos predicted by this attempt.
        seconds: Duration of this attempt.

    Raises:
        RuntimeError: Photos are missing or duplicated.
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
