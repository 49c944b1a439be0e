"""Memory-mapped cache of the decoded photos of a split, which saves JPEG decoding per epoch."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pets_core.data.dataset import open_parquet, read_photo_tables, read_shard
from pets_core.data.ingest.images import decode
from pets_core.errors import explain_full_disk
from pets_core.progress import OnProgress, Progress, ignore_progress
from pets_core.records.base import Resize, Split
from pets_core.records.dataset import DatasetManifest
from pets_core.records.target_spec import target_spec
from pets_core.storage.cache import get_lock, mark_used, remove_unused

__all__ = [
    "TARGET_COLUMNS",
    "DecodedPhotos",
    "EncodedPhotos",
    "open_decoded",
]

Targets = npt.NDArray[np.int64] | npt.NDArray[np.float32]

TARGET_COLUMNS = {"label": "label", "labels": "one_hot", "numbers": "numbers"}
"""Column of a shard with the targets, by how the kind of target is stored."""
_VERSION = 3
_DISK_SHARE = 0.5
_MAX_AUTO_GIB = 48
"""Limit of auto: a pod's quota may be smaller than the free disk that it sees."""
_BATCH = 128


class EncodedPhotos:
    """Encoded photos, concatenated in a memory-mapped file.

    Args:
        data: Bytes of all photos, uint8.
        ends: End offset of each photo, int64 (N,).
    """

    def __init__(self, data: npt.NDArray[np.uint8], ends: npt.NDArray[np.int64]) -> None:
        self._data, self._ends = data, ends

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, row: int) -> bytes:
        start = self._ends[row - 1] if row else 0
        return self._data[start : self._ends[row]].tobytes()


class DecodedPhotos:
    """Photos of one split, in the order of its Parquet rows.

    The first M are cached decoded; the others are decoded on each read.

    Attributes:
        pixels: The first M photos, uint8 RGB, shape (M, size, size, 3), memory-mapped read-only.
        encoded: The other N - M photos.
        targets: Class indices, int64 (N,); multi-hot tags, float32 (N, C); or numbers, float32
            (N, D).
        ids: Photo ids, length N.
        resize: How the photos were made squares.
    """

    def __init__(
        self,
        pixels: npt.NDArray[np.uint8],
        targets: Targets,
        ids: list[str],
        encoded: EncodedPhotos | None = None,
        resize: Resize = "squish",
    ) -> None:
        if not len(pixels) + len(encoded or ()) == len(targets) == len(ids):
            raise ValueError("pixels, targets and ids must have one entry per photo")
        self.pixels, self.targets, self.ids, self.encoded = pixels, targets, ids, encoded
        self.resize = resize

    def __len__(self) -> int:
        return len(self.ids)

    def read(
        self, rows: npt.NDArray[np.int64], out: npt.NDArray[np.uint8] | None = None
    ) -> npt.NDArray[np.uint8]:
        """Return the photos of some rows, uint8 (len(rows), size, size, 3).

        Args:
            rows: Row indices, in any order.
            out: Output array of that shape; None: allocate one.
        """
        if out is None:
            out = np.empty((len(rows), *self.pixels.shape[1:]), np.uint8)
        assert (rows >= 0).all(), "mode clip would read the first photo instead"
        is_cached = rows < len(self.pixels)
        if is_cached.all():
            # Mode "clip" writes to `out` without an intermediate buffer.
            np.take(self.pixels, rows, axis=0, out=out, mode="clip")
            return out
        out[is_cached] = self.pixels[rows[is_cached]]
        missing = np.flatnonzero(~is_cached)
        decoded = self._decoders.map(self._decode, rows[missing])
        for index, pixels in zip(missing, decoded, strict=True):
            out[index] = pixels
        return out

    def file(self, row: int) -> bytes | None:
        """Return the encoded bytes of a photo, or None if it is cached decoded."""
        if row < len(self.pixels):
            return None
        assert self.encoded is not None
        return self.encoded[row - len(self.pixels)]

    def _decode(self, row: int) -> npt.NDArray[np.uint8]:
        file = self.file(row)
        assert file is not None
        return decode(file, self.pixels.shape[1], self.resize)

    @cached_property
    def _decoders(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(os.cpu_count())


def open_decoded(
    manifest: DatasetManifest,
    split: Split,
    size: int,
    *,
    resize: Resize = "squish",
    cache_dir: str,
    limit_gib: float | Literal["auto"],
    on_progress: OnProgress = ignore_progress,
) -> DecodedPhotos:
    """Open the decoded photos of a split; decode them first unless they are cached.

    Cache files are keyed by fingerprint, split, size and number of decoded photos. One process
    builds them while others wait. They are renamed to their final names once complete, and are
    removed when no run has opened them for long (`pets_core.storage.cache`).

    Args:
        manifest: Manifest of a committed data set.
        split: Split to open.
        size: Side of the decoded square, pixels.
        resize: How to make photos squares.
        cache_dir: Local folder for the files.
        limit_gib: Maximum size of the decoded photos, GiB; photos beyond it are cached encoded.
            auto: half of the free disk, up to 48 GiB, or the size cached by earlier runs if larger.
        on_progress: Called with the number of photos processed.

    Raises:
        PetsError: A shard is missing or fails its checksum.
    """
    folder = Path(cache_dir).expanduser() / "decoded"
    folder.mkdir(parents=True, exist_ok=True)
    num_decoded, (pixels, data, ends) = _find_or_decode(
        folder, manifest, split, (size, resize), limit_gib, on_progress
    )
    column = TARGET_COLUMNS[target_spec(manifest.targets).storage]
    table = read_photo_tables(manifest.files(split), ["id", column])
    encoded = None
    if num_decoded < len(table):
        encoded = EncodedPhotos(np.memmap(data, np.uint8, "r"), np.fromfile(ends, np.int64))
    shape = (num_decoded, size, size, 3)
    return DecodedPhotos(
        np.memmap(pixels, np.uint8, "r", shape=shape) if num_decoded else np.empty(shape, np.uint8),
        _targets(table[column]),
        table["id"].to_pylist(),
        encoded,
        resize,
    )


def _find_or_decode(
    folder: Path,
    manifest: DatasetManifest,
    split: Split,
    form: tuple[int, Resize],
    limit_gib: float | Literal["auto"],
    on_progress: OnProgress,
) -> tuple[int, list[Path]]:
    """Return the number of decoded photos and the three cache files, which are written if needed.

    Args:
        folder: Folder of the cache.
        manifest: Manifest of a committed data set.
        split: Split to decode.
        form: Side of the square, and how photos become squares.
        limit_gib: As for `open_decoded`.
        on_progress: Called with the number of photos processed.
    """
    size, resize = form
    total, photo_bytes = manifest.splits[split].num_rows, size * size * 3
    other = () if resize == "squish" else (resize,)
    identity = (_VERSION, manifest.fingerprint, split, size, *other)
    key = sha256(repr(identity).encode()).hexdigest()[:24]
    name = f"{key}-{manifest.fingerprint}-{split}-{size}"
    with explain_full_disk(str(folder), "cache_dir"), get_lock(folder / name):
        if limit_gib == "auto":
            num_decoded = max(
                _num_cached(folder, name, photo_bytes),
                _num_that_fit(folder, manifest, split, photo_bytes),
            )
        else:
            num_decoded = min(total, int(limit_gib * 2**30 / photo_bytes))
        files = [folder / f"{name}-{num_decoded}.{kind}" for kind in ("u8", "encoded", "ends")]
        # The pixel file is renamed last. After a power failure it may be truncated.
        if not files[0].exists() or files[0].stat().st_size != num_decoded * photo_bytes:
            remove_unused(folder)
            _decode_all(manifest, split, form, num_decoded, files, on_progress)
        for file in files:
            mark_used(file)
    return num_decoded, files


def _num_cached(folder: Path, name: str, photo_bytes: int) -> int:
    """Return the largest number of photos that an earlier run has decoded."""
    found: list[int] = []
    for path in folder.glob(f"{name}-*.u8"):
        number = int(path.stem.rsplit("-", 1)[-1])
        if path.stat().st_size == number * photo_bytes:
            found.append(number)
    return max(found, default=0)


def _num_that_fit(folder: Path, manifest: DatasetManifest, split: Split, photo_bytes: int) -> int:
    """Return how many photos fit decoded on the free disk, with the others encoded."""
    info = manifest.splits[split]
    budget = min(shutil.disk_usage(folder).free * _DISK_SHARE, _MAX_AUTO_GIB * 2**30)
    if info.num_rows * photo_bytes <= budget:
        return info.num_rows
    stored = sum(shard.num_bytes for shard in info.shards)
    extra = max(photo_bytes - stored / info.num_rows, 1)
    return min(max(int((budget - stored) / extra), 0), info.num_rows)


def _targets(column: pa.ChunkedArray) -> Targets:
    """Return class indices, int64 (N,), or the values of a list column, float32 (N, D)."""
    if not pa.types.is_list(column.type):
        indices: npt.NDArray[np.int64] = column.to_numpy()
        return indices
    values = column.combine_chunks()
    flat: npt.NDArray[np.float32] = values.flatten().to_numpy().astype(np.float32)
    return flat.reshape(len(values), -1)


def _decode_all(
    manifest: DatasetManifest,
    split: Split,
    form: tuple[int, Resize],
    num_decoded: int,
    paths: list[Path],
    on_progress: OnProgress,
) -> None:
    """Write the pixels of the first photos, and the bytes and end offsets of the others."""
    total, done, end = manifest.splits[split].num_rows, 0, 0
    partial = [path.with_name(f"{path.name}.partial") for path in paths]
    try:
        with ExitStack() as stack:
            pixels, data, ends = (stack.enter_context(path.open("wb")) for path in partial)
            pool = stack.enter_context(ThreadPoolExecutor(os.cpu_count()))
            for batch in _photo_batches(manifest, split):
                decoded = batch[: max(num_decoded - done, 0)]
                for photo in pool.map(lambda encoded: decode(encoded, *form), decoded):
                    pixels.write(photo.tobytes())
                for encoded in batch[len(decoded) :]:
                    end += data.write(encoded)
                    ends.write(np.int64(end).tobytes())
                done += len(batch)
                on_progress(
                    Progress(stage=f"decode {split}", done=done, total=total, unit="photos")
                )
        for path, temporary in reversed(list(zip(paths, partial, strict=True))):
            temporary.replace(path)
    finally:
        for temporary in partial:
            temporary.unlink(missing_ok=True)


def _photo_batches(manifest: DatasetManifest, split: Split) -> Iterator[list[bytes]]:
    for shard in manifest.splits[split].shards:
        data = read_shard(manifest, shard)
        for batch in open_parquet(io.BytesIO(data)).iter_batches(_BATCH, columns=["image"]):
            yield batch.column("image").field("bytes").to_pylist()
