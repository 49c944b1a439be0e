"""Decoded photos to batches: which photo comes when, on which rank."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pets_core.data.decoded import DecodedPhotos
from pets_core.data.transforms import Transform

__all__ = ["Batch", "PhotoLoader", "global_batches"]


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch.

    Attributes:
        inputs: Model inputs, first dimension b.
        targets: int64 (b,).
        rows: Places of the samples in their split, (b,).
        global_size: Samples of this batch over all ranks.
    """

    inputs: Tensor
    targets: Tensor
    rows: npt.NDArray[np.int64]
    global_size: int


def global_batches(
    num_rows: int, batch_size: int, *, seed: int | None, epoch: int
) -> list[npt.NDArray[np.int64]]:
    """Deal every row to exactly one batch of an epoch.

    Batches differ by at most one row in size, so the last is never a tiny one; none has more than
    `batch_size`.

    Args:
        num_rows: Rows of the split.
        batch_size: Most rows in a batch, over all ranks.
        seed: Seed of the shuffle; None keeps the order.
        epoch: Another epoch, another shuffle.

    Returns:
        The rows of each batch, in order.
    """
    order = np.arange(num_rows)
    if seed is not None:
        np.random.default_rng((seed, epoch)).shuffle(order)
    return np.array_split(order, -(-num_rows // batch_size))


class PhotoLoader:
    """Batches of one split for one rank. Every row is seen once an epoch, by one rank."""

    def __init__(
        self,
        photos: DecodedPhotos,
        transform: Transform,
        *,
        batch_size: int,
        seed: int | None,
        device: torch.device,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if len(photos) == 0:
            raise ValueError("the split is empty")
        self._photos, self._transform = photos, transform
        self._batch_size, self._seed, self._device = batch_size, seed, device
        self._rank, self._world_size = rank, world_size

    @property
    def num_batches(self) -> int:
        """Batches an epoch, the same on every rank."""
        return -(-len(self._photos) // self._batch_size)

    @property
    def num_rows(self) -> int:
        """Rows of the split, over all ranks."""
        return len(self._photos)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield this rank's share of every batch of one epoch; a share may be empty."""
        batches = global_batches(len(self._photos), self._batch_size, seed=self._seed, epoch=epoch)
        for number, rows in enumerate(batches):
            first = len(rows) * self._rank // self._world_size
            last = len(rows) * (self._rank + 1) // self._world_size
            own = rows[first:last]
            # Reading the memory map in file order is kinder to the disk than in shuffled order.
            by_place = np.argsort(own)
            pixels = np.empty((len(own), *self._photos.pixels.shape[1:]), np.uint8)
            pixels[by_place] = self._photos.pixels[own[by_place]]
            inputs = self._transform(
                torch.from_numpy(pixels).to(self._device),
                seed=_batch_seed(self._seed or 0, epoch, number),
                rows=slice(first, last),
                global_size=len(rows),
            )
            targets = torch.from_numpy(self._photos.labels[own]).to(self._device)
            yield Batch(inputs, targets, own, len(rows))


def _batch_seed(seed: int, epoch: int, number: int) -> int:
    return int(np.random.SeedSequence((seed, epoch, number)).generate_state(1, np.uint64)[0] >> 1)
