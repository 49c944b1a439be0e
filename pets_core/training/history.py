"""What a training went through, and its Parquet table."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from pets_core.data.dataset import open_parquet
from pets_core.records.training import EpochMetrics, MetricInfo
from pets_core.training.best import Best

__all__ = ["History", "read_steps", "steps_table"]


@dataclass
class History:
    """A row for each optimizer step, one for each epoch, the best weights, and what comes next.

    Attributes:
        steps: Of the epochs that are over.
        epochs: That are over.
        best: Weights of least validation loss.
        rows: Steps of the epoch that is under way.
        seconds: That these rows took in attempts before this one.
        phase: Number of the phase that is under way.
        first_epoch: Of that phase, among all.
    """

    steps: list[dict[str, Any]] = field(default_factory=list)
    epochs: list[EpochMetrics] = field(default_factory=list)
    best: Best = field(default_factory=Best)
    rows: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    phase: int = -1
    first_epoch: int = 0

    @property
    def num_steps(self) -> int:
        """Optimizer steps so far."""
        return len(self.steps) + len(self.rows)

    @property
    def epochs_of_phase(self) -> int:
        """Epochs of the present phase that are over."""
        return len(self.epochs) - self.first_epoch

    def begin_phase(self, number: int) -> None:
        """Note that a phase begins; one that is gone on with after a resume has begun already."""
        if number > self.phase:
            self.phase, self.first_epoch = number, len(self.epochs)
            self.best.epochs_since = 0

    def end_epoch(
        self,
        phase: Literal["frozen", "unfrozen"],
        seconds: float,
        num_samples: int,
        scores: tuple[float, float] | None,
        metric: MetricInfo,
    ) -> list[dict[str, Any]]:
        """Close the epoch that is under way.

        Args:
            phase: Which kind of epoch it was.
            seconds: What this attempt's part of it took.
            num_samples: Of an epoch.
            scores: Validation loss and metric, if there are any.
            metric: What the metric is.

        Returns:
            The epoch's rows.
        """
        epoch, first = len(self.epochs), len(self.steps)
        seconds += self.seconds
        rows = [
            {"step": first + number, "phase": phase, "epoch": epoch} | row
            for number, row in enumerate(self.rows)
        ]
        self.steps += rows
        self.rows, self.seconds = [], 0.0
        self.epochs.append(
            EpochMetrics(
                phase=phase,
                epoch=epoch,
                train_loss=sum(row["loss"] for row in rows) / len(rows),
                valid_loss=scores[0] if scores else None,
                valid_metric=scores[1] if scores else None,
                metric=metric,
                seconds=seconds,
                photos_per_second=num_samples / seconds,
            )
        )
        return rows


def steps_table(steps: list[dict[str, Any]]) -> bytes:
    """One row for each optimizer step, as a Parquet file.

    Columns: step, phase, epoch, loss, grad_norm, momentum, samples_per_second, data_seconds (spent
    waiting for the batch) and lr_group_<n>, which is null where the group did not learn.
    """
    columns = sorted({key for row in steps for key in row})
    table = pa.table({key: [row.get(key) for row in steps] for key in columns})
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


def read_steps(data: bytes) -> list[dict[str, Any]]:
    """The rows of a `steps_table`, without what is null."""
    rows = open_parquet(io.BytesIO(data)).read().to_pylist()
    return [{key: value for key, value in row.items() if value is not None} for row in rows]
