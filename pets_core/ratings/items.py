"""Items of a rating model: biases, nearest items, and a map of their factors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pets_core.data.dataset import list_column
from pets_core.ratings.dataset import Vocabulary

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Items", "nearest", "principal_plane"]

_NUM_LISTED = 10
_NUM_NEAREST = 5
_NUM_MAPPED = 50
_MIN_RATINGS = 5
"""Items with fewer training ratings are not listed by bias."""


@dataclass(frozen=True)
class Items:
    """Items of a rating model, in arrays by index; index 0 is an unknown item.

    Attributes:
        names: Vocabulary of the version the model was trained on.
        biases: (num_items + 1,), before the sigmoid.
        factors: (num_items + 1, F).
    """

    names: Vocabulary
    biases: npt.NDArray[np.float32]
    factors: npt.NDArray[np.float32]

    @cached_property
    def popular(self) -> npt.NDArray[np.int64]:
        """Indices of items with training ratings, sorted by number of ratings, descending."""
        counts = self.names.num_ratings_by_item
        order = np.argsort(-counts, kind="stable")
        return order[counts[order] > 0]

    def tables(self) -> dict[str, pd.DataFrame]:
        """Return tables of the best, the worst and the most rated items."""
        found = {}
        listed = np.flatnonzero(self.names.num_ratings_by_item >= _MIN_RATINGS)
        for name, sign in (("best", -1), ("worst", 1)):
            order = listed[np.argsort(sign * self.biases[listed], kind="stable")]
            found[name] = self._rows(order[:_NUM_LISTED])
        popular = self.popular[:_NUM_LISTED]
        rows = self._rows(popular)
        rows["nearest"] = [
            ", ".join(self._titles(others))
            for others in nearest(self.factors, popular, _NUM_NEAREST)
        ]
        return {**found, "popular": rows}

    def map(self) -> bytes:
        """Return a PNG of the most rated items in the principal plane of their factors."""
        from pets_core.plots.ratings import embedding_map

        mapped = self.popular[:_NUM_MAPPED]
        return embedding_map(principal_plane(self.factors[mapped]), self._titles(mapped))

    def table(self) -> pa.Table:
        """Return one row per known item: id, title, number of ratings, bias, factors."""
        columns = {
            "item": pa.array(self.names.items[1:], pa.string()),
            "title": pa.array(self.names.titles[1:], pa.string()),
            "num_ratings": self.names.num_ratings_by_item[1:],
            "bias": self.biases[1:],
            "factors": list_column(self.factors[1:]),
        }
        return pa.table(columns)

    def _rows(self, indices: npt.NDArray[np.int64]) -> pd.DataFrame:
        import pandas as pd

        return pd.DataFrame(
            {
                "item": self._titles(indices),
                "ratings": self.names.num_ratings_by_item[indices],
                "bias": self.biases[indices].astype(float),
            }
        )

    def _titles(self, indices: npt.NDArray[np.int64]) -> list[str]:
        return [self.names.titles[index] for index in indices.tolist()]


def nearest(
    factors: npt.NDArray[np.float32], indices: npt.NDArray[np.int64], count: int
) -> npt.NDArray[np.int64]:
    """Find the items with the most similar factors, by cosine similarity.

    Args:
        factors: Factors of all items by index, (num_items + 1, F); row 0 is not an item.
        indices: Items to find neighbours of, (n,).
        count: Neighbours per item; at most num_items - 1.

    Returns:
        Indices of the neighbours without the item itself, nearest first, (n, count).
    """
    length = np.linalg.norm(factors, axis=1, keepdims=True)
    directions = factors / np.maximum(length, np.finfo(np.float32).tiny)
    similarity = directions[indices] @ directions.T
    similarity[:, 0] = -np.inf
    similarity[np.arange(len(indices)), indices] = -np.inf
    count = max(min(count, len(factors) - 2), 0)
    order: npt.NDArray[np.int64] = np.argsort(-similarity, axis=1, kind="stable")[:, :count]
    return order


def principal_plane(factors: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Project factors to their first two principal components (Pearson, 1901).

    Args:
        factors: (n, F) with n >= 1.

    Returns:
        Coordinates, (n, 2); the second is 0 if F is 1.
    """
    centred = factors.astype(np.float64) - factors.mean(0, dtype=np.float64)
    left, lengths, _ = np.linalg.svd(centred, full_matrices=False)
    plane = np.zeros((len(factors), 2))
    found = (left * lengths)[:, :2]
    plane[:, : found.shape[1]] = found
    return plane
