"""Data loader of ratings: batches of each rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pets_core.data.loading.batches import BatchSampler, SampledLoader
from pets_core.data.loading.transforms import to_device
from pets_core.ratings.dataset import Ratings

__all__ = ["RatingsBatch", "RatingsLoader"]


class _RatingNames(Sequence[str]):
    """Names of ratings, formatted lazily, since they are used only in error messages."""

    def __init__(self, users: npt.NDArray[np.int32], items: npt.NDArray[np.int32]) -> None:
        self._users, self._items = users, items

    def __len__(self) -> int:
        return len(self._users)

    @overload
    def __getitem__(self, position: int) -> str: ...
    @overload
    def __getitem__(self, position: slice) -> list[str]: ...
    def __getitem__(self, position: int | slice) -> str | list[str]:
        if isinstance(position, slice):
            return [self[index] for index in range(*position.indices(len(self)))]
        return f"user index {self._users[position]} item index {self._items[position]}"


@dataclass(frozen=True)
class RatingsBatch:
    """One rank's share of a global batch.

    Attributes:
        inputs: Indices of user and item, int64 (b, 2).
        targets: Ratings, float32 (b,).
        rows: Row indices of the ratings in their split, (b,).
        ids: Names of the ratings, b.
        global_size: Number of ratings in the batch over all ranks.
    """

    inputs: Tensor
    targets: Tensor
    rows: npt.NDArray[np.int64]
    ids: Sequence[str]
    global_size: int


class RatingsLoader(SampledLoader):
    """Batches of one split for one rank; each rating is in one batch per epoch, on one rank.

    Args:
        ratings: Ratings of the split.
        batch_size: Maximum ratings in a batch, over all ranks.
        seed: Seed for shuffling; None keeps the order.
        device: Device of the batches.
        rank: Rank of this process.
        world_size: Number of ranks.
        on_batch: Called before each batch.
    """

    def __init__(
        self,
        ratings: Ratings,
        *,
        batch_size: int,
        seed: int | None,
        device: torch.device,
        rank: int = 0,
        world_size: int = 1,
        on_batch: Callable[[], None] = lambda: None,
    ) -> None:
        # Interleaved, so that a row is contiguous in memory.
        self._pairs = np.stack([ratings.users, ratings.items], 1)
        self._ratings = ratings.ratings
        self._device, self._on_batch = device, on_batch
        self.sampler = BatchSampler(len(self._ratings), batch_size, seed, rank, world_size)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[RatingsBatch]:
        """Yield this rank's share of each batch of an epoch, starting at batch `first`."""
        for share in self.sampler.shares(epoch)[first:]:
            self._on_batch()
            yield self._batch(share.rows, share.global_size)

    def _batch(self, rows: npt.NDArray[np.int64], global_size: int) -> RatingsBatch:
        pairs = self._pairs[rows]
        return RatingsBatch(
            inputs=to_device(torch.from_numpy(pairs).long(), self._device),
            targets=to_device(torch.from_numpy(self._ratings[rows]), self._device),
            rows=rows,
            ids=_RatingNames(pairs[:, 0], pairs[:, 1]),
            global_size=global_size,
        )
