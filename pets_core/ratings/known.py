"""Indices of users and items with training ratings."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

__all__ = ["KnownIds", "index_known"]


class KnownIds(NamedTuple):
    """Training ratings and indices of the M users, or items, of a table.

    Attributes:
        num_ratings: Number of training ratings, int64 (M,).
        indices: Index, int32 (M,): from 1 in the order of the ids; 0 (unknown) without training
            ratings.
    """

    num_ratings: npt.NDArray[np.int64]
    indices: npt.NDArray[np.int32]

    @property
    def num(self) -> int:
        """Number of known users, or items."""
        return int(np.count_nonzero(self.indices))

    def num_cold(self, positions: npt.NDArray[np.int32]) -> int:
        """Return how many distinct users, or items, at positions (N,) of the table are unknown."""
        return len(np.unique(positions[self.indices[positions] == 0]))

    def vocabulary(self, **columns: pa.StringArray) -> pa.Table:
        """Return one row per index, the first for index 0, with the number of training ratings.

        Args:
            columns: Further columns, with a value for each user or item, known or not, (M,).
        """
        known = self.indices > 0
        unknown = pa.array([""], pa.string())
        known_columns = {
            name: pa.concat_arrays([unknown, column.filter(pa.array(known))])
            for name, column in columns.items()
        }
        return pa.table(known_columns | {"num_ratings": np.append(0, self.num_ratings[known])})


def index_known(positions: npt.NDArray[np.int32], num: int) -> KnownIds:
    """Count the training ratings of each user, or item, and index those with ratings.

    Args:
        positions: Position in the table of each training rating's user, or item, (N,).
        num: Number of users, or items, in the table.
    """
    num_ratings = np.bincount(positions, minlength=num)
    known = num_ratings > 0
    return KnownIds(num_ratings, np.where(known, np.cumsum(known), 0).astype(np.int32))
