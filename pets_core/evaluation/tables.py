"""The tables an evaluation left in the store, read back."""

from __future__ import annotations

from typing import Any

import pyarrow.parquet as pq

from pets_core import storage

__all__ = ["read_confusion"]


def read_confusion(url: str) -> list[dict[str, Any]]:
    """Read confusion.parquet: rows of actual, predicted and count, by plain Python types."""
    with storage.open_read(url) as file:
        rows: list[dict[str, Any]] = pq.read_table(file).to_pylist()
    return rows
