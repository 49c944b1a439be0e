"""Exact nearest-neighbour search of unit vectors, block by block.

There is no index: on one core, a search of 100,000 photos takes two seconds, and all pairs of them
take minutes (docs/embeddings.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Blocks", "Pairs", "find_close_pairs", "nearest"]


class Blocks(Protocol):
    """Sequence of blocks of unit vectors, float32 (b, D), of any sizes."""

    def __len__(self) -> int:
        """Number of blocks."""

    def __getitem__(self, number: int, /) -> NDArray[np.float32]:
        """Read a block."""


class Pairs(NamedTuple):
    """Row indices of the two vectors of P pairs, int64 (P,), and their cosine similarity."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    similarity: NDArray[np.float32]


def nearest(
    blocks: Blocks, vector: NDArray[np.float32], count: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Find the vectors with the highest cosine similarity to a query.

    Args:
        blocks: N vectors.
        vector: The query, of unit length, (D,).
        count: Number of vectors to find.

    Returns:
        Row indices and similarities of min(count, N) vectors, most similar first; ties by row.
    """
    rows, similarity = np.empty(0, np.int64), np.empty(0, np.float32)
    start = 0
    for number in range(len(blocks)):
        block = blocks[number]
        rows = np.concatenate([rows, np.arange(start, start + len(block))])
        similarity = np.concatenate([similarity, block @ vector])
        # Stable, and rows ascend among ties.
        best = np.argsort(-similarity, kind="stable")[:count]
        rows, similarity = rows[best], similarity[best]
        start += len(block)
    return rows, similarity


def find_close_pairs(blocks: Blocks, min_similarity: float) -> Iterator[Pairs]:
    """Find all pairs of vectors with a cosine similarity of at least `min_similarity`.

    Each block is multiplied by itself and by all later blocks. Memory is two blocks and their
    product, independent of N. Time grows with the square of N.

    Args:
        blocks: N vectors.
        min_similarity: Minimum cosine similarity.

    Yields:
        The pairs of two blocks, each pair once, with first < second.
    """
    start = 0
    for number in range(len(blocks)):
        own = blocks[number]
        other_start = start
        for other_number in range(number, len(blocks)):
            other = own if other_number == number else blocks[other_number]
            product = own @ other.T
            first, second = np.nonzero(product >= min_similarity)
            similarity = product[first, second]
            first, second = first + start, second + other_start
            once = first < second
            if once.any():
                yield Pairs(first[once], second[once], similarity[once])
            other_start += len(other)
        start += len(own)
