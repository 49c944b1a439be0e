"""Data loader of ratings: batches of each rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pets_core.data.loading.batches import BatchSampler, RowLoader
from pets_core.ratings.dataset import Ratings

__all__ = ["ratings_loader"]


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


def ratings_loader(
    ratings: Ratings,
    sampler: BatchSampler,
    device: torch.device,
    on_batch: Callable[[], None] = lambda: None,
) -> RowLoader:
    """Return the batches of one split for one rank.

    Inputs are indices of user and item, int64 (b, 2); targets are ratings, float32 (b,).

    Args:
        ratings: Ratings of the split.
        sampler: Chooses the rows of the batches.
        device: Device of the batches.
        on_batch: Called before each batch is read.
    """
    # Interleaved, so that a row is contiguous in memory.
    pairs = np.stack([ratings.users, ratings.items], 1)

    def read(rows: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor, Sequence[str]]:
        chosen = pairs[rows]
        targets = torch.from_numpy(ratings.ratings[rows])
        return torch.from_numpy(chosen).long(), targets, _RatingNames(chosen[:, 0], chosen[:, 1])

    return RowLoader(read, sampler, device, on_batch)
