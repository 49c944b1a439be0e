"""Search by blocks finds the same pairs as the whole matrix of cosines."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pets_core.embeddings.file import normalize
from pets_core.embeddings.search import find_close_pairs, nearest

ROUNDING = 1e-5
"""Rounding differs with the block size, since products are summed in another order."""


@st.composite
def vectors_in_blocks(draw) -> tuple[np.ndarray, list[np.ndarray]]:
    """Draw unit vectors, many near another, split into blocks of any size, including 0."""
    count, size = draw(st.integers(1, 40)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    centres = rng.normal(size=(draw(st.integers(1, 8)), size))
    noise = draw(st.sampled_from([0.0, 0.01, 0.3])) * rng.normal(size=(count, size))
    vectors = normalize((centres[rng.integers(0, len(centres), count)] + noise).astype(np.float32))
    cuts = sorted(draw(st.lists(st.integers(0, count), max_size=6)))
    return vectors, np.split(vectors, cuts)


@given(vectors_in_blocks(), st.floats(0.1, 0.999))
def test_every_close_pair_is_found_once(drawn, min_similarity):
    vectors, blocks = drawn
    found = [
        (*pair, value)
        for pairs in find_close_pairs(blocks, min_similarity)
        for *pair, value in zip(*(column.tolist() for column in pairs), strict=True)
    ]
    indices = [pair[:2] for pair in found]
    assert len(indices) == len(set(indices))
    cosines = vectors.astype(np.float64) @ vectors.T
    for first, second, value in found:
        assert first < second
        assert value == pytest.approx(cosines[first, second], abs=ROUNDING)
        assert value >= np.float32(min_similarity)
    certain = np.argwhere(np.triu(cosines >= min_similarity + ROUNDING, 1))
    assert set(map(tuple, certain.tolist())) <= set(indices)


@given(vectors_in_blocks(), st.integers(1, 50), st.integers(0, 2**32 - 1))
def test_nearest_matches_the_whole_matrix(drawn, count, seed):
    vectors, blocks = drawn
    query = normalize(
        np.random.default_rng(seed).normal(size=vectors[:1].shape).astype(np.float32)
    )[0]
    indices, similarity = nearest(blocks, query, count)
    cosines = vectors @ query
    assert len(indices) == len(set(indices.tolist())) == min(count, len(vectors))
    np.testing.assert_allclose(similarity, cosines[indices], atol=ROUNDING)
    np.testing.assert_allclose(similarity, np.sort(cosines)[::-1][:count], atol=ROUNDING)


def test_nearest_returns_the_first_of_equal_vectors():
    vectors = np.tile(np.eye(2, dtype=np.float32), (5, 1))
    indices, _ = nearest([vectors[:3], vectors[3:]], vectors[1], 3)
    assert indices.tolist() == [1, 3, 5]


class Drawn:
    """Forty blocks of 256 vectors each, generated on access."""

    def __init__(self) -> None:
        drawn = np.random.default_rng(0).normal(size=(256, 64))
        self._first = normalize(drawn.astype(np.float32))

    def __len__(self) -> int:
        return 40

    def __getitem__(self, number: int, /) -> np.ndarray:
        return np.roll(self._first, number, axis=1)


@pytest.mark.parametrize("search", ["pairs", "nearest"])
def test_memory_does_not_grow_with_the_number_of_vectors(search):
    blocks = Drawn()
    query = blocks[3][7]
    tracemalloc.start()
    try:
        if search == "pairs":
            assert sum(len(pairs.first) for pairs in find_close_pairs(blocks, 0.5)) > 0
        else:
            assert nearest(blocks, query, 5)[0][0] == 3 * 256 + 7
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    whole = 40 * 256 * 64 * 4
    assert peak < whole / 2, "the matrix of all cosines is 160 times as large as all vectors"


def test_zero_vector_has_no_close_pairs():
    vectors = normalize(np.array([[0, 0], [0, 0], [3, 4]], np.float32))
    np.testing.assert_allclose(vectors, [[0, 0], [0, 0], [0.6, 0.8]], rtol=1e-6)
    assert list(find_close_pairs([vectors], 0.1)) == []
