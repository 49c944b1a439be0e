"""Which rating goes to which split: a pure function of its ids and a seed, or of its time."""

from __future__ import annotations

from hashlib import sha256

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pets_core.ratings.table import RatingsTable
from pets_core.records.base import Split

__all__ = ["SPLITS", "newest_held_out", "randomly_held_out"]

SPLITS: tuple[Split, ...] = ("train", "valid", "test")
"""What the numbers of the splits mean."""


def randomly_held_out(
    table: RatingsTable, valid_fraction: float, test_fraction: float, seed: int
) -> npt.NDArray[np.int8]:
    """Hold a rating out when a hash of seed, user and item is below the share to hold out.

    So its split depends on no other rating, and never changes when ratings are added; the share
    held out is exact only on average.

    Returns:
        Places in `SPLITS`, int8 (N,).
    """
    hashes = _hashes(table.user_ids, f"{seed}:user")[table.users]
    hashes += _hashes(table.item_ids, f"{seed}:item")[table.items]
    _mix(hashes)
    splits = np.zeros(len(hashes), np.int8)
    # Powers of two multiply exactly.
    splits[hashes < np.uint64((valid_fraction + test_fraction) * 2**64)] = SPLITS.index("valid")
    splits[hashes < np.uint64(test_fraction * 2**64)] = SPLITS.index("test")
    return splits


def newest_held_out(
    table: RatingsTable, valid_fraction: float, test_fraction: float
) -> npt.NDArray[np.int8]:
    """Hold the newest ratings out for testing and those before them for validation.

    Ratings of one time are in the order of their users and items.

    Returns:
        Places in `SPLITS`, int8 (N,).
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
    """A hash of each id, uint64 (N,)."""
    digests = b"".join(sha256(f"{key}:{i}".encode()).digest()[:8] for i in ids.to_pylist())
    return np.frombuffer(digests, "<u8").astype(np.uint64)


def _mix(values: npt.NDArray[np.uint64]) -> None:
    """The finalizer of SplitMix64 (Steele and others 2014), in place."""
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
