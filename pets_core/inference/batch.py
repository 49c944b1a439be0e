"""What a model sees on many photos without labels: planned in parts, each part written once.

<output>/plan.parquet           every photo, a row group a part
<output>/predictions/           part-00000.parquet and so on
<output>/unreadable.parquet     photos that could not be looked at
<output>/skipped.parquet        files that are not photos by their names, or that a system made
<output>/summary.json           written last: all parts are there
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel

from pets_core import storage
from pets_core.config.pipeline import PipelineConfig
from pets_core.data.dataset import open_parquet, read_table, write_table
from pets_core.data.ingest.images import decode
from pets_core.data.sources.files import Files
from pets_core.data.sources.formats import UnreadablePhotoError, refuse_raw
from pets_core.data.sources.sources import open_photos
from pets_core.errors import PetsError
from pets_core.models.card import WEIGHTS, ModelCard, read_card
from pets_core.records.inference import BatchPlan, BatchSummary

__all__ = [
    "PARTS",
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
                f"{output_url}: holds predictions by another model, of another source or in parts "
                "of another size: give another folder"
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
    if card.targets != "class":
        raise PetsError(
            f"{model_url}: tells {card.targets} and no class, which batch-predict writes: have "
            "`pets predict` look at photos, or `pets evaluate` at a data set"
        )
    digest = hashlib.sha256(_told(card).encode())
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


def decoded_batches(
    files: Files, photos: dict[str, str], size: int, *, batch_size: int, num_threads: int
) -> Iterator[tuple[list[str], NDArray[np.uint8], dict[str, str]]]:
    """Read and decode photos, a batch ahead of the one that is looked at.

    Args:
        files: The source.
        photos: Each photo's path, and why it must not be read.
        size: Side of the square they are decoded to, pixels.
        batch_size: Photos of a batch, fewer where some are unreadable.
        num_threads: That decode.

    Yields:
        Paths of B photos, their pixels, uint8 (B, size, size, 3), and what is wrong with others.
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
            paths, pixels, faults = coming.pop(0).result()
            yield paths, pixels, faults | (unread if number == 0 else {})
    if not batches:
        yield [], np.empty((0, size, size, 3), np.uint8), unread


def _read_batch(
    files: Files, size: int, decoders: ThreadPoolExecutor, paths: list[str]
) -> tuple[list[str], NDArray[np.uint8], dict[str, str]]:
    def decoded(
        path: str, data: bytes | UnreadablePhotoError
    ) -> NDArray[np.uint8] | UnreadablePhotoError:
        if isinstance(data, UnreadablePhotoError):
            return data
        try:
            refuse_raw(path)
            return decode(data, size)
        except UnreadablePhotoError as error:
            return error

    found = list(decoders.map(decoded, paths, _read(files, paths)))
    faults = {
        path: f"{said.reason.replace('_', ' ')}: {said.detail}"
        for path, said in zip(paths, found, strict=True)
        if isinstance(said, UnreadablePhotoError)
    }
    pixels = [said for said in found if not isinstance(said, UnreadablePhotoError)]
    empty = np.empty((0, size, size, 3), np.uint8)
    return [p for p in paths if p not in faults], np.stack(pixels) if pixels else empty, faults


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
    probabilities: dict[str, NDArray[np.float32]],
    errors: dict[str, str],
) -> None:
    """Write the predictions of a part, whole or not at all.

    Columns: `photo`, `breed` and its `probability`, `probabilities` of all classes in the model's
    order, and `error`, which says why a photo could not be looked at; then the others are null.

    Args:
        plan: The plan.
        number: Of the part.
        card: The model's.
        photos: All of the part, in order.
        probabilities: Of those that were looked at, (C,).
        errors: What is wrong with the others.
    """
    names = [c.name for c in card.classes]
    found = [probabilities.get(photo) for photo in photos]
    columns = {
        "photo": (list(photos), pa.string()),
        "breed": ([None if p is None else names[p.argmax()] for p in found], pa.string()),
        "probability": ([None if p is None else p.max() for p in found], pa.float32()),
        "probabilities": (found, pa.list_(pa.float32(), len(names))),
        "error": ([errors.get(photo) for photo in photos], pa.string()),
    }
    table = pa.table({name: pa.array(*column) for name, column in columns.items()})
    table = table.replace_schema_metadata({"classes": "\n".join(names), "model": plan.model_url})
    write_table(part_url(plan, number), table, setting="--to")


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
    breeds: dict[str, int] = {}
    unreadable: list[dict[str, str]] = []
    for number in range(plan.num_parts):
        part = read_table(part_url(plan, number), ["photo", "breed", "error"])
        photos += part["photo"].to_pylist()
        for row in part.to_pylist():
            if row["error"] is not None:
                unreadable.append({"photo": row["photo"], "error": row["error"]})
            else:
                breeds[row["breed"]] = breeds.get(row["breed"], 0) + 1
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
        breeds=dict(sorted(breeds.items(), key=lambda item: (-item[1], item[0]))),
        unreadable=tuple((row["photo"], row["error"]) for row in unreadable[:500]),
        photos_per_second=num_predicted / seconds if num_predicted else 0.0,
    )
    text = summary.model_dump_json()
    storage.write_bytes(storage.join(plan.url, _SUMMARY), text.encode(), "--to")
    return summary
