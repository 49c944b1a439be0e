"""Batch sampler of a rank, and batches of rows in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pets_core.data.loading.transforms import to_device

__all__ = [
    "Batch",
    "BatchSampler",
    "ReadRows",
    "RowLoader",
    "SampledLoader",
    "Share",
    "global_batches",
]

ReadRows = Callable[[npt.NDArray[np.int64]], tuple[Tensor, Tensor, Sequence[str]]]
"""Returns inputs and targets, on the host, and the ids of some rows of a split."""


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch.

    Attributes:
        inputs: Model inputs, first dimension b.
        targets: Class indices, int64 (b,); class proportions of mixed photos, float32 (b, C); tags
            or numbers, float32 (b, D).
        rows: Row indices of the samples in their split, (b,).
        ids: Sample ids, length b.
        global_size: Number of samples of this batch over all ranks.
        maps: For coordinate targets, maps from input to photo coordinates, float32 (b, 3, 3).
    """

    inputs: Tensor
    targets: Tensor
    rows: npt.NDArray[np.int64]
    ids: Sequence[str]
    global_size: int
    maps: Tensor | None = None


@dataclass(frozen=True)
class Share:
    """One rank's share of a global batch, before it is read.

    Attributes:
        rows: Row indices in the split.
        positions: Positions in the global batch of `global_size`.
        entropy: Seed of the loader, epoch and number of the batch.
    """

    rows: npt.NDArray[np.int64]
    positions: slice
    global_size: int
    entropy: tuple[int, int, int]

    @property
    def seed(self) -> int:
        """Seed of the batch's augmentation; not every loader needs it."""
        return int(np.random.SeedSequence(self.entropy).generate_state(1, np.uint64)[0] >> 1)


@dataclass(frozen=True)
class BatchSampler:
    """Which rows of a split form each batch, and which of them are this rank's.

    Attributes:
        num_rows: Number of rows of the split, over all ranks.
        batch_size: Maximum rows per batch, over all ranks.
        seed: Seed of shuffle and augmentation; None keeps the order.
        rank: Rank of this process.
        world_size: Number of ranks.
        weights: Relative frequency of each row, if rows are drawn with replacement.
    """

    num_rows: int
    batch_size: int
    seed: int | None
    rank: int = 0
    world_size: int = 1
    weights: npt.NDArray[np.float64] | None = None

    @property
    def num_batches(self) -> int:
        """Number of batches per epoch, the same on every rank."""
        return -(-self.num_rows // self.batch_size)

    def shares(self, epoch: int) -> list[Share]:
        """Return this rank's share of each batch of an epoch."""
        shares: list[Share] = []
        batches = global_batches(
            self.num_rows, self.batch_size, seed=self.seed, epoch=epoch, weights=self.weights
        )
        for number, rows in enumerate(batches):
            first = len(rows) * self.rank // self.world_size
            last = len(rows) * (self.rank + 1) // self.world_size
            entropy = (self.seed or 0, epoch, number)
            shares.append(Share(rows[first:last], slice(first, last), len(rows), entropy))
        return shares


class SampledLoader:
    """Base class of loaders with a sampler.

    Attributes:
        sampler: Chooses the rows of the batches.
    """

    sampler: BatchSampler

    @property
    def num_batches(self) -> int:
        """Number of batches per epoch, the same on every rank."""
        return self.sampler.num_batches

    @property
    def num_rows(self) -> int:
        """Number of rows of the split, over all ranks."""
        return self.sampler.num_rows


class RowLoader(SampledLoader):
    """Batches of rows in memory, for one rank.

    Args:
        read: Returns the rows of a batch.
        sampler: Chooses the rows of the batches.
        device: Device of the batches.
        on_batch: Called before each batch is read.
    """

    def __init__(
        self,
        read: ReadRows,
        sampler: BatchSampler,
        device: torch.device,
        on_batch: Callable[[], None] = lambda: None,
    ) -> None:
        self._read, self.sampler = read, sampler
        self._device, self._on_batch = device, on_batch

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Yield this rank's share of each batch of an epoch, starting at batch `first`."""
        for share in self.sampler.shares(epoch)[first:]:
            self._on_batch()
            inputs, targets, ids = self._read(share.rows)
            yield Batch(
                to_device(inputs, self._device),
                to_device(targets, self._device),
                share.rows,
                ids,
                share.global_size,
            )


def global_batches(
    num_rows: int,
    batch_size: int,
    *,
    seed: int | None,
    epoch: int,
    weights: npt.NDArray[np.float64] | None = None,
) -> list[npt.NDArray[np.int64]]:
    """Partition the rows of a split into the batches of an epoch.

    Batch sizes differ by at most one row and do not exceed `batch_size`, so there is no small last
    batch.

    Args:
        num_rows: Number of rows of the split.
        batch_size: Maximum rows per batch, over all ranks.
        seed: Seed of the shuffle; None keeps the order.
        epoch: Epoch; each is shuffled differently.
        weights: Relative frequency of each row; rows are then drawn with replacement. None: each
            row once.

    Returns:
        The rows of each batch, in order.
    """
    order = np.arange(num_rows)
    if weights is not None:
        random = np.random.default_rng((seed or 0, epoch))
        order = random.choice(num_rows, num_rows, p=weights / weights.sum())
    elif seed is not None:
        np.random.default_rng((seed, epoch)).shuffle(order)
    return np.array_split(order, -(-num_rows // batch_size))
