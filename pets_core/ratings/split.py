"""Assignment of ratings to splits, by a hash of ids and seed, or by time."""

from __future__ import annotations

from hashlib import sha256

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pets_core.ratings.table import RatingsTable
from pets_core.records.base import Split

__all__ = ["SPLITS", "split_by_hash", "split_by_time"]

SPLITS: tuple[Split, ...] = ("train", "valid", "test")
"""Splits by number."""


def split_by_hash(
    table: RatingsTable, valid_fraction: float, test_fraction: float, seed: int
) -> npt.NDArray[np.int8]:
    """Hold out ratings whose hash of seed, user and item is below the fraction.

    The split of a rating does not depend on other ratings, so it does not change when ratings are
    added. Fractions are exact only on average.

    Returns:
        Positions in `SPLITS`, int8 (N,).
    """
    hashes = _hashes(table.user_ids, f"{seed}:user")[table.users]
    hashes += _hashes(table.item_ids, f"{seed}:item")[table.items]
    _mix_in_place(hashes)
    splits = np.zeros(len(hashes), np.int8)
    # Multiplying by a power of two is exact.
    splits[hashes < np.uint64((valid_fraction + test_fraction) * 2**64)] = SPLITS.index("valid")
    splits[hashes < np.uint64(test_fraction * 2**64)] = SPLITS.index("test")
    return splits


def split_by_time(
    table: RatingsTable, valid_fraction: float, test_fraction: float
) -> npt.NDArray[np.int8]:
    """Hold out the newest ratings for testing, and those before them for validation.

    Ratings with equal times are ordered by user and item.

    Returns:
        Positions in `SPLITS`, int8 (N,).
    """
    assert table.times is not None
    num_rows = len(table.times)
    num_test, num_valid = round(test_fraction * num_rows), round(valid_fraction * num_rows)
    splits = np.zeros(num_rows, np.int8)
    newest = np.argsort(table.times, kind="stable")[::-1]
    splits[newest[:num_test]] = SPLITS.index("test")
    splits[newest[num_test : num_test + num_valid]] = SPLITS.index("valid")
    return splits


def _hashes(ids: pa.StringArray, key: str) -> npt.NDArray[np.uint64]:
    """Return a hash of each id, uint64 (N,)."""
    digests = b"".join(sha256(f"{key}:{i}".encode()).digest()[:8] for i in ids.to_pylist())
    return np.frombuffer(digests, "<u8").astype(np.uint64)


def _mix_in_place(values: npt.NDArray[np.uint64]) -> None:
    """Apply the finalizer of SplitMix64 (Steele et al., 2014) in place."""
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
