"""Users and items that have training ratings, and the indices these give them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

__all__ = ["Known", "count_known"]


class Known(NamedTuple):
    """Which users, or items, of a table have training ratings.

    Attributes:
        num_ratings: Training ratings of each, known or not, int64 (M,).
        indices: Of each, int32 (M,): from 1 on in the order of the ids, 0 where it is unknown.
    """

    num_ratings: npt.NDArray[np.int64]
    indices: npt.NDArray[np.int32]

    @property
    def num(self) -> int:
        """How many are known."""
        return int(np.count_nonzero(self.indices))

    def num_cold(self, places: npt.NDArray[np.int32]) -> int:
        """How many of the users, or items, at these places in the table, (N,), are unknown."""
        return len(np.unique(places[self.indices[places] == 0]))

    def vocabulary(self, **columns: pa.StringArray) -> pa.Table:
        """What the indices stand for: a row each, the first for 0, with its training ratings.

        Args:
            columns: What else there is to tell of each user or item, known or not, (M,).
        """
        known = self.indices > 0
        nothing = pa.array([""], pa.string())
        told = {
            name: pa.concat_arrays([nothing, column.filter(pa.array(known))])
            for name, column in columns.items()
        }
        return pa.table(told | {"num_ratings": np.append(0, self.num_ratings[known])})


def count_known(places: npt.NDArray[np.int32], num: int) -> Known:
    """Count the training ratings of each user, or item, and index those that have some.

    Args:
        places: Of the training ratings' users, or items, in the table, (N,).
        num: How many users, or items, the table has.
    """
    num_ratings = np.bincount(places, minlength=num)
    known = num_ratings > 0
    return Known(num_ratings, np.where(known, np.cumsum(known), 0).astype(np.int32))
