"""Features of a frozen body: computed once, cached on the machine, shared by its ranks."""

from __future__ import annotations

import contextlib
import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from numpy.typing import NDArray
from torch import Tensor, nn

from pets_core.data.loading.decoded import DecodedPhotos
from pets_core.data.loading.loader import PhotoLoader, view_targets
from pets_core.errors import PetsError, explain_full_disk
from pets_core.models.classifier import Classifier
from pets_core.models.memory import HalvingForward
from pets_core.models.package import TrainedModel
from pets_core.progress import OnProgress, Progress
from pets_core.storage.cache import get_lock, mark_used, remove_unused

__all__ = ["FeatureKey", "Features", "checksum", "open_features"]

_VERSION = 1


@dataclass(frozen=True)
class Features:
    """Features of the photos of a split, in the order of its rows.

    Attributes:
        values: Pooled features of the photos without augmentation, float32 (N, D), memory-mapped.
        targets: Targets of the same view of the photos, (N,) or (N, k).
        ids: Photo ids, length N.
    """

    values: NDArray[np.float32]
    targets: Tensor
    ids: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor, list[str]]:
        """Return features, targets and ids of some rows, on the host."""
        values = torch.from_numpy(self.values[rows])
        return values, self.targets[torch.from_numpy(rows)], [self.ids[row] for row in rows]


@dataclass(frozen=True)
class FeatureKey:
    """Everything that the features of a split depend on.

    Attributes:
        dataset: Fingerprint of the data set.
        split: Name of the split.
        view: Preprocessing of the photos.
        precision: Mixed precision of the forward passes.
        device: Type of the device.
        weights: Checksum of the body's weights.
    """

    dataset: str
    split: str
    view: str
    precision: str
    device: str
    weights: str

    @property
    def file_name(self) -> str:
        """Name of the cache file."""
        key = sha256(repr((_VERSION, self)).encode()).hexdigest()[:24]
        return f"{key}-{self.dataset}-{self.split}.f32"


def checksum(module: nn.Module) -> str:
    """Return the SHA-256 checksum of a module's parameters and buffers."""
    digest = sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(memoryview(data.numpy()))
    return digest.hexdigest()


def open_features(
    built: TrainedModel,
    photos: DecodedPhotos,
    loader: PhotoLoader,
    key: FeatureKey,
    *,
    accelerator: Accelerator,
    cache_dir: str,
    watchdog: AbstractContextManager[Any],
    on_progress: OnProgress,
) -> Features:
    """Open the features of a split; compute them first unless they are cached on this machine.

    Call it on all ranks. The ranks of a machine share the work and the file.

    Args:
        built: Its body computes the features; set to evaluation mode.
        photos: Photos of the split.
        loader: Their center crops, in stored order; this rank's share of this machine's batches.
        key: Names the cache file.
        accelerator: Mixed precision, device, ranks.
        cache_dir: Local folder for the file.
        watchdog: Entered while this rank computes.
        on_progress: Called with the number of photos processed.

    Raises:
        PetsError: The body returns features that are not finite.
    """
    folder = Path(cache_dir).expanduser() / "features"
    folder.mkdir(parents=True, exist_ok=True)
    card = built.card
    path, shape = folder / key.file_name, (len(photos), card.num_features)
    with explain_full_disk(str(folder), "cache_dir"):
        missing = gather_object([_is_missing(path, shape)])
        # All ranks take part if any machine lacks the file, so that they wait for each other. Local
        # rank 0 decides for its machine: another run may complete the file between two checks.
        is_missing = missing[accelerator.process_index - accelerator.local_process_index]
        if any(missing):
            (token,) = broadcast_object_list([uuid4().hex])
            partial = path.with_name(f"{path.name}.{token}.partial")
            if is_missing:
                with watchdog:
                    _compute(built.model, loader, partial, shape, accelerator, on_progress)
            accelerator.wait_for_everyone()
            if is_missing and accelerator.is_local_main_process:
                # Machines may share a folder: both files have the same content.
                with contextlib.suppress(FileNotFoundError):
                    partial.replace(path)
            accelerator.wait_for_everyone()
    values = np.memmap(path, np.float32, "r", shape=shape)
    if not np.isfinite(values).all():
        raise PetsError(
            "the backbone returns features that are not finite: check model.weights, or set "
            "train.mixed_precision = no"
        )
    return Features(values, view_targets(photos, card.center_crop(), card.targets), photos.ids)


def _is_missing(path: Path, shape: tuple[int, int]) -> bool:
    """Return whether the file must be computed; if not, mark it as used."""
    with get_lock(path):
        if path.exists() and path.stat().st_size == 4 * shape[0] * shape[1]:
            mark_used(path)
            return False
    remove_unused(path.parent)
    return True


@torch.no_grad()
def _compute(
    model: Classifier,
    loader: PhotoLoader,
    path: Path,
    shape: tuple[int, int],
    accelerator: Accelerator,
    on_progress: OnProgress,
) -> None:
    """Write this rank's share of the features to a file."""
    model.eval()
    # Opening for update does not truncate what another rank has written.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        _allocate(descriptor, 4 * shape[0] * shape[1])
    finally:
        os.close(descriptor)
    values = np.memmap(path, np.float32, "r+", shape=shape)
    forward = HalvingForward(lambda inputs: (model.embed(inputs).float(),), accelerator)
    done = 0
    try:
        for batch in loader.epoch(0):
            (features,) = forward(batch.inputs)
            values[batch.rows] = features.cpu().numpy()
            done += batch.global_size
            on_progress(Progress(stage="features", done=done, total=shape[0], unit="photos"))
        values.flush()
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _allocate(descriptor: int, size: int) -> None:
    """Reserve disk space: a write to a sparse memory map on a full disk ends the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.truncate(descriptor, size)
