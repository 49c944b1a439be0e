"""Exact search among unit vectors, a block of them in memory at a time.

No index is built: a hundred thousand photos are looked through in two seconds of one core's work,
and compared with each other in minutes (docs/embeddings.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Blocks", "Pairs", "close_pairs", "nearest"]


class Blocks(Protocol):
    """Unit vectors in order, in blocks of any sizes: float32 (b, D)."""

    def __len__(self) -> int:
        """Number of blocks."""

    def __getitem__(self, number: int, /) -> NDArray[np.float32]:
        """One block, read when it is asked for."""


class Pairs(NamedTuple):
    """Places of the first and the second vector of P pairs, int64 (P,), and their cosines."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    similarity: NDArray[np.float32]


def nearest(
    blocks: Blocks, vector: NDArray[np.float32], count: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Find the vectors of greatest cosine with one.

    Args:
        blocks: N vectors.
        vector: (D,), of length 1.
        count: How many to find.

    Returns:
        Their places and cosines, the nearest first, of equal ones the first; `count`, or N if that
        is less.
    """
    places, similarity = np.empty(0, np.int64), np.empty(0, np.float32)
    start = 0
    for number in range(len(blocks)):
        block = blocks[number]
        places = np.concatenate([places, np.arange(start, start + len(block))])
        similarity = np.concatenate([similarity, block @ vector])
        # Stable, and the places rise among equals.
        best = np.argsort(-similarity, kind="stable")[:count]
        places, similarity = places[best], similarity[best]
        start += len(block)
    return places, similarity


def close_pairs(blocks: Blocks, min_similarity: float) -> Iterator[Pairs]:
    """Find every pair of vectors whose cosine is at least `min_similarity`.

    Each block is multiplied by itself and by those after it: two blocks and their product are in
    memory at once, whatever N is; time grows with its square.

    Args:
        blocks: N vectors.
        min_similarity: Least cosine.

    Yields:
        The pairs of two blocks, each pair once, first below second.
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
