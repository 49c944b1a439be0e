"""Tables of an evaluation, as Parquet and CSV."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from pets_core import storage
from pets_core.data.dataset import read_table, write_table
from pets_core.storage.csv import table_csv

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["issues_csv", "read_frame", "write_frame"]


def write_frame(url: str, frame: pd.DataFrame) -> None:
    """Write a table to `url`.parquet and `url`.csv."""
    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata()
    write_table(f"{url}.parquet", table)
    storage.write_bytes(f"{url}.csv", table_csv(table))


def read_frame(url: str) -> pd.DataFrame:
    """Read a table of `write_frame`."""
    frame: pd.DataFrame = read_table(f"{url}.parquet").to_pandas()
    return frame


def issues_csv(issues: pd.DataFrame) -> bytes:
    """Return label issues as CSV, with numbers rounded to 4 decimals."""
    return table_csv(pa.Table.from_pandas(issues.round(4), preserve_index=False))
