"""Decoded photos of one split in a memory-mapped file, so that an epoch pays no JPEG decoding."""

from __future__ import annotations

import io
import os
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pets_core import storage
from pets_core.data.dataset import open_parquet, read_table
from pets_core.data.images import decode
from pets_core.errors import PetsError
from pets_core.progress import OnProgress, Progress, ignore_progress
from pets_core.records import DatasetManifest, Split

__all__ = ["DecodedPhotos", "open_decoded"]

_VERSION = 1


class DecodedPhotos:
    """The photos of one split, in the order of its Parquet rows.

    Attributes:
        pixels: uint8 RGB, shape (N, size, size, 3), memory-mapped read-only.
        labels: int64 class indices, shape (N,).
        ids: Photo ids, length N.
    """

    def __init__(
        self, pixels: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64], ids: list[str]
    ) -> None:
        if not len(pixels) == len(labels) == len(ids):
            raise ValueError("pixels, labels and ids must have one entry a photo")
        self.pixels, self.labels, self.ids = pixels, labels, ids

    def __len__(self) -> int:
        return len(self.ids)


def open_decoded(
    manifest: DatasetManifest,
    split: Split,
    size: int,
    *,
    cache_dir: str,
    limit_gib: float,
    on_progress: OnProgress = ignore_progress,
) -> DecodedPhotos:
    """Open the decoded photos of a split, decoding them first where that has not been done.

    The file is keyed by the data set's fingerprint, the split and the size, and appears under its
    name only when it is whole, so any number of processes may do this at once.

    Args:
        manifest: A committed data set.
        split: Which photos.
        size: Side of the decoded square, pixels.
        cache_dir: Local folder for the file.
        limit_gib: Most that the file may take, GiB.
        on_progress: Told how many photos are decoded.

    Raises:
        PetsError: The file would exceed `limit_gib`, or a shard fails its checksum.
    """
    shape = (manifest.splits[split].num_rows, size, size, 3)
    needed_gib = float(np.prod(shape, dtype=np.float64)) / 2**30
    if needed_gib > limit_gib:
        raise PetsError(
            f"launch.decode_cache_gib = {limit_gib:g}: the {shape[0]} {split} photos take "
            f"{needed_gib:.1f} GiB decoded at {size} pixels; raise it to that or lower "
            "model.image_size"
        )
    folder = Path(cache_dir).expanduser() / "decoded"
    path = folder / f"v{_VERSION}-{manifest.fingerprint}-{split}-{size}.u8"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _decode_all(manifest, split, size, path, on_progress)
    columns = [
        read_table(manifest.shard_url(shard), ["id", "label"])
        for shard in manifest.splits[split].shards
    ]
    table = pa.concat_tables(columns)
    return DecodedPhotos(
        np.memmap(path, np.uint8, "r", shape=shape),
        table["label"].to_numpy(),
        table["id"].to_pylist(),
    )


def _decode_all(
    manifest: DatasetManifest, split: Split, size: int, path: Path, on_progress: OnProgress
) -> None:
    total = manifest.splits[split].num_rows
    partial = path.with_name(f"{path.name}.partial-{uuid.uuid4().hex[:8]}")
    done = 0
    try:
        with partial.open("wb") as sink, ThreadPoolExecutor(os.cpu_count()) as pool:
            for batch in _photo_batches(manifest, split):
                for pixels in pool.map(lambda data: decode(data, size), batch):
                    sink.write(pixels.tobytes())
                done += len(batch)
                on_progress(
                    Progress(stage=f"decode {split}", done=done, total=total, unit="photos")
                )
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _photo_batches(manifest: DatasetManifest, split: Split) -> Iterator[list[bytes]]:
    for shard in manifest.splits[split].shards:
        url = manifest.shard_url(shard)
        data = storage.read_bytes(url)
        if sha256(data).hexdigest() != shard.sha256:
            raise PetsError(f"{url} fails its checksum: restore it, or remove it and ingest again")
        for batch in open_parquet(io.BytesIO(data)).iter_batches(128, columns=["image"]):
            yield batch.column("image").field("bytes").to_pylist()
