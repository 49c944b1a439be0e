"""Progress reports of a training."""

from __future__ import annotations

import time

from pets_core.progress import OnProgress, Progress, speed_text
from pets_core.records.training import EpochMetrics

__all__ = ["TrainProgress"]

_REPORT_EVERY_SECONDS = 2.0


class TrainProgress:
    """Reports the progress of steps, at most every 2 seconds, and of epochs.

    Args:
        on_progress: Callback for the reports.
        num_epochs: Number of epochs over all phases.
        steps_per_epoch: Number of optimizer steps per epoch.
    """

    def __init__(self, on_progress: OnProgress, num_epochs: int, steps_per_epoch: int) -> None:
        self._on_progress, self._num_epochs = on_progress, num_epochs
        self._steps_per_epoch = steps_per_epoch
        self._last = time.monotonic()

    def step(self, done: int, loss: float | None, samples_per_second: float) -> None:
        """Report the number of optimizer steps taken.

        Args:
            done: Number of optimizer steps.
            loss: Latest loss on the host, if any.
            samples_per_second: Throughput of the last step.
        """
        if time.monotonic() - self._last < _REPORT_EVERY_SECONDS:
            return
        self._last = time.monotonic()
        epoch = (done - 1) // self._steps_per_epoch + 1
        shown = "" if loss is None else f", loss {loss:.3f}"
        total = self._num_epochs * self._steps_per_epoch
        detail = f"epoch {epoch}/{self._num_epochs}{shown}"
        self._report(done, total, "steps", detail, samples_per_second)

    def epoch(self, metrics: EpochMetrics) -> None:
        """Report the metrics of an epoch."""
        detail = f"{metrics.phase}: train loss {metrics.train_loss:.3f}"
        if metrics.valid_loss is not None:
            detail += f", valid loss {metrics.valid_loss:.3f}"
            detail += f", valid {metrics.metric.name} {metrics.metric_text}"
        done = metrics.epoch + 1
        self._report(done, self._num_epochs, "epochs", detail, metrics.photos_per_second)

    def _report(self, done: int, total: int, unit: str, detail: str, speed: float) -> None:
        self._on_progress(
            Progress(
                stage="train",
                done=done,
                total=total,
                unit=unit,
                detail=", ".join(filter(None, [detail, speed_text(speed, "samples/s")])),
                photos_per_second=speed,
            )
        )
