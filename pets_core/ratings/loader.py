"""Ratings to batches: which rating comes when, on which rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pets_core.data.loading.loader import global_batches
from pets_core.data.loading.transforms import to_device
from pets_core.ratings.dataset import Ratings

__all__ = ["RatingsBatch", "RatingsLoader"]


class _Names(Sequence[str]):
    """What ratings are called; worked out when somebody asks, for nobody does of most batches."""

    def __init__(self, users: npt.NDArray[np.int32], items: npt.NDArray[np.int32]) -> None:
        self._users, self._items = users, items

    def __len__(self) -> int:
        return len(self._users)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self[index] for index in range(*place.indices(len(self)))]
        return f"user index {self._users[place]} item index {self._items[place]}"


@dataclass(frozen=True)
class RatingsBatch:
    """One rank's share of a global batch.

    Attributes:
        inputs: Indices of user and item, int64 (b, 2).
        targets: Ratings, float32 (b,).
        rows: Places of the ratings in their split, (b,).
        ids: What the ratings are called, b of them.
        global_size: Ratings of this batch over all ranks.
    """

    inputs: Tensor
    targets: Tensor
    rows: npt.NDArray[np.int64]
    ids: Sequence[str]
    global_size: int


class RatingsLoader:
    """Batches of one split for one rank. Every rating is seen once an epoch, by one rank.

    Args:
        ratings: Of the split.
        batch_size: Most ratings in a batch, over all ranks.
        seed: Of the shuffle; None keeps the order.
        device: Where batches are wanted.
        rank: Of this process.
        world_size: Number of ranks.
        on_batch: Called before each batch is handed out.
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
        # Side by side, a row is fetched from one place in memory.
        self._pairs = np.stack([ratings.users, ratings.items], 1)
        self._ratings = ratings.ratings
        self._batch_size, self._seed, self._device = batch_size, seed, device
        self._rank, self._world_size, self._on_batch = rank, world_size, on_batch

    @property
    def num_batches(self) -> int:
        """Batches an epoch, the same on every rank."""
        return -(-self.num_rows // self._batch_size)

    @property
    def num_rows(self) -> int:
        """Ratings of the split, over all ranks."""
        return len(self._ratings)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[RatingsBatch]:
        """Yield this rank's share of every batch of one epoch, from batch `first` on."""
        batches = global_batches(self.num_rows, self._batch_size, seed=self._seed, epoch=epoch)
        for batch in batches[first:]:
            start = len(batch) * self._rank // self._world_size
            end = len(batch) * (self._rank + 1) // self._world_size
            self._on_batch()
            yield self._batch(batch[start:end], len(batch))

    def _batch(self, rows: npt.NDArray[np.int64], global_size: int) -> RatingsBatch:
        pairs = self._pairs[rows]
        return RatingsBatch(
            inputs=to_device(torch.from_numpy(pairs).long(), self._device),
            targets=to_device(torch.from_numpy(self._ratings[rows]), self._device),
            rows=rows,
            ids=_Names(pairs[:, 0], pairs[:, 1]),
            global_size=global_size,
        )
