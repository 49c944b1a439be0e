"""Data loader: shuffled batches of decoded photos, sharded over the ranks."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pets_core.config.train import TransformConfig
from pets_core.data.ingest.images import is_plain_jpeg
from pets_core.data.loading.batches import Batch, BatchSampler, SampledLoader, Share
from pets_core.data.loading.decoded import DecodedPhotos
from pets_core.data.loading.jpeg import decode_squares
from pets_core.data.loading.mixing import mix
from pets_core.data.loading.transforms import (
    COORDINATE_RANGE,
    CenterCrop,
    Transform,
    to_device,
    transform_box,
    transform_points,
)
from pets_core.records.target_spec import target_spec

__all__ = [
    "PhotoLoader",
    "fits_on_gpu",
    "transform_coordinates",
    "view_targets",
]

_GPU_SHARE = 0.25


class _TransformArgs(TypedDict):
    seed: int
    rows: slice
    global_size: int


def host_buffer(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Return uninitialised uint8 host memory, pinned for copies to a CUDA device.

    Pinned blocks come from torch's caching allocator, which reuses a block once copies from it are
    done.
    """
    return torch.empty(shape, dtype=torch.uint8, pin_memory=device.type == "cuda")


def decodes_jpegs(device: torch.device) -> bool:
    """Return whether a device can decode JPEGs; NVIDIA GPUs can (nvJPEG)."""
    return device.type == "cuda" and torch.version.hip is None


def fits_on_gpu(photos: DecodedPhotos, device: torch.device) -> bool:
    """Return whether all photos are decoded and fit in a quarter of the GPU's free memory."""
    if device.type != "cuda" or photos.encoded is not None:
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return photos.pixels.nbytes <= free * _GPU_SHARE


class PhotoLoader(SampledLoader):
    """Batches of one split for one rank; the next batch is read while the current one is processed.

    Args:
        photos: Photos of the split.
        transform: Converts photos to model inputs, on the device.
        sampler: Chooses the rows of the batches; its seed is also that of augmentation.
        device: Device of the batches.
        on_device: Keep all photos on the device.
        mixing: Mixup and CutMix settings; photos are mixed if an alpha is above 0.
        num_classes: Number of classes; required for mixing.
        targets: Kind of target; coordinates are transformed with the photos.
        on_batch: Called before each batch is yielded.
    """

    def __init__(
        self,
        photos: DecodedPhotos,
        transform: Transform,
        sampler: BatchSampler,
        *,
        device: torch.device,
        on_device: bool = False,
        mixing: TransformConfig | None = None,
        num_classes: int = 0,
        targets: str = "class",
        on_batch: Callable[[], None] = lambda: None,
    ) -> None:
        if len(photos) == 0:
            raise ValueError("the split is empty")
        if sampler.num_rows != len(photos):
            raise ValueError(f"the sampler has {sampler.num_rows} rows, not {len(photos)}")
        self._photos, self._transform, self._device = photos, transform, device
        self.sampler = sampler
        self._resident = torch.tensor(photos.pixels, device=device) if on_device else None
        mixes = mixing is not None and (mixing.mixup_alpha or mixing.cutmix_alpha)
        self._mixing, self._num_classes = mixing if mixes else None, num_classes
        self._geometry, self._on_batch = target_spec(targets).geometry, on_batch
        self._gpu_decoding_failed = False
        # Not owned by the generator `epoch`, which would wait for the thread when collected early.
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Yield this rank's share of each batch of an epoch, starting at batch `first`.

        A share may be empty.
        """
        shares = self.sampler.shares(epoch)[first:]
        if not shares:
            return
        reading = self._reader.submit(self._read, shares[0])
        for number, share in enumerate(shares):
            pixels, targets = reading.result()
            if number + 1 < len(shares):
                reading = self._reader.submit(self._read, shares[number + 1])
            self._on_batch()
            yield self._batch(share, pixels, targets)

    def _read(self, share: Share) -> tuple[Tensor, Tensor]:
        """Start copying photos and targets to the device; runs in the reader thread."""
        rows = torch.from_numpy(share.rows)
        targets = torch.from_numpy(self._photos.targets[share.rows])
        if self._resident is not None:
            return self._resident[to_device(rows, self._device)], to_device(targets, self._device)
        has_files = self._photos.encoded is not None and not self._gpu_decoding_failed
        if has_files and decodes_jpegs(self._device):
            return self._decode(share.rows), to_device(targets, self._device)
        return self._read_pixels(share.rows), to_device(targets, self._device)

    def _read_pixels(self, rows: npt.NDArray[np.int64]) -> Tensor:
        shape = (len(rows), *self._photos.pixels.shape[1:])
        pixels = host_buffer(shape, self._device)
        self._photos.read(rows, out=pixels.numpy())
        return pixels.to(self._device, non_blocking=self._device.type == "cuda")

    def _decode(self, rows: npt.NDArray[np.int64]) -> Tensor:
        """Return photos, decoding plain JPEGs on the device; fall back to the CPU on an error."""
        files = {index: self._photos.file(row) for index, row in enumerate(rows)}
        plain = {index: file for index, file in files.items() if file and is_plain_jpeg(file)}
        if not plain:
            return self._read_pixels(rows)
        size = self._photos.pixels.shape[1]
        try:
            squares = decode_squares(list(plain.values()), size, self._device, self._photos.resize)
        except RuntimeError as error:
            self._gpu_decoding_failed = True
            warnings.warn(f"JPEGs are decoded on the CPU: {error}", stacklevel=1)
            return self._read_pixels(rows)
        others = np.array([index for index in files if index not in plain], np.int64)
        positions = torch.from_numpy(np.concatenate([np.array(list(plain), np.int64), others]))
        together = torch.cat([squares, self._read_pixels(rows[others])])
        return together[to_device(positions.argsort(), self._device)]

    def _batch(self, share: Share, pixels: Tensor, targets: Tensor) -> Batch:
        args: _TransformArgs = {
            "seed": share.seed, "rows": share.positions, "global_size": share.global_size
        }  # fmt: skip
        inputs = self._transform(pixels, **args)
        ids = [self._photos.ids[row] for row in share.rows]
        batch = Batch(inputs, targets, share.rows, ids, share.global_size)
        if self._geometry is not None:
            maps = self._transform.maps(pixels.shape[1], **args)
            moved = _to_view(targets, maps, self._geometry)
            return replace(batch, targets=moved, maps=to_device(maps, self._device))
        if self._mixing is None:
            return batch
        inputs, targets = mix(inputs, targets, self._num_classes, self._mixing, seed=share.seed)
        return replace(batch, inputs=inputs, targets=targets)


def view_targets(photos: DecodedPhotos, transform: CenterCrop, targets: str) -> Tensor:
    """Return the targets of the center crops of all photos, as `PhotoLoader` has.

    Args:
        photos: Photos of the split.
        transform: The crop.
        targets: Kind of target.

    Returns:
        Targets, (N,) or (N, k); coordinates are those on the crop.
    """
    values, geometry = torch.tensor(photos.targets), target_spec(targets).geometry
    if geometry is None:
        return values
    maps = transform.maps(photos.pixels.shape[1], rows=slice(0, len(photos)))
    return _to_view(values, maps, geometry)


def _to_view(targets: Tensor, maps: Tensor, geometry: str) -> Tensor:
    """Transform coordinates, (B, D), of photos to those of views with maps (B, 3, 3)."""
    # Inverted on the host: torch.linalg.inv synchronises a GPU.
    inverse = to_device(torch.linalg.inv(maps), targets.device)
    return transform_coordinates(targets, inverse, geometry).clamp(*COORDINATE_RANGE)


def transform_coordinates(coordinates: Tensor, maps: Tensor, geometry: str) -> Tensor:
    """Transform points or boxes, (B, D), by maps (B, 3, 3)."""
    return (transform_box if geometry == "box" else transform_points)(coordinates, maps)
