"""History of a training, and its Parquet table."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from pets_core.data.dataset import open_parquet
from pets_core.records.training import EpochMetrics, MetricInfo
from pets_core.training.best import BestWeights

__all__ = ["History", "read_steps", "steps_table"]


@dataclass
class History:
    """Rows of all optimizer steps and epochs, the best weights, and the current position.

    Attributes:
        steps: Rows of the optimizer steps of the finished epochs.
        epochs: Metrics of the finished epochs.
        best: Weights with the lowest validation loss.
        rows: Rows of the steps of the current epoch.
        seconds: Duration of these steps in earlier attempts.
        phase: Number of the current phase; -1 before the first.
        first_epoch: Number of that phase's first epoch, counted over all phases.
    """

    steps: list[dict[str, Any]] = field(default_factory=list)
    epochs: list[EpochMetrics] = field(default_factory=list)
    best: BestWeights = field(default_factory=BestWeights)
    rows: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    phase: int = -1
    first_epoch: int = 0

    @property
    def num_steps(self) -> int:
        """Number of optimizer steps so far."""
        return len(self.steps) + len(self.rows)

    @property
    def epochs_of_phase(self) -> int:
        """Number of finished epochs of the current phase."""
        return len(self.epochs) - self.first_epoch

    def begin_phase(self, number: int) -> None:
        """Start a phase; does nothing if it was started before a resume."""
        if number > self.phase:
            self.phase, self.first_epoch = number, len(self.epochs)
            self.best.epochs_without_improvement = 0

    def end_epoch(
        self,
        phase: Literal["frozen", "unfrozen"],
        seconds: float,
        num_samples: int,
        scores: tuple[float, float] | None,
        metric: MetricInfo,
    ) -> list[dict[str, Any]]:
        """Finish the current epoch.

        Args:
            phase: Name of the phase.
            seconds: Duration of this attempt's part of the epoch.
            num_samples: Number of training samples per epoch.
            scores: Validation loss and metric, if there is a validation split.
            metric: Name and direction of the metric.

        Returns:
            The rows of the epoch's steps.
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
    """Return a Parquet file with one row per optimizer step.

    Columns: step, phase, epoch, loss, grad_norm, momentum, samples_per_second, data_seconds (time
    spent waiting for the batch) and lr_group_<n>, which is null where the group was frozen.
    """
    columns = sorted({key for row in steps for key in row})
    table = pa.table({key: [row.get(key) for row in steps] for key in columns})
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


def read_steps(data: bytes) -> list[dict[str, Any]]:
    """Return the rows of a `steps_table`, without null values."""
    rows = open_parquet(io.BytesIO(data)).read().to_pylist()
    return [{key: value for key, value in row.items() if value is not None} for row in rows]
