"""The history of a training as a Parquet table."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from pets_core import storage
from pets_core.training.loop import History

__all__ = ["write_history"]


def write_history(url: str, history: History) -> None:
    """Write one row for each optimizer step.

    Columns: step, phase, epoch, loss, grad_norm, momentum, samples_per_second, data_seconds (spent
    waiting for the batch) and lr_group_<n>, which is null where the group did not learn.
    """
    columns = sorted({key for row in history.steps for key in row})
    table = pa.table({key: [row.get(key) for row in history.steps] for key in columns})
    with storage.writing(url) as file:
        pq.write_table(table, file)
