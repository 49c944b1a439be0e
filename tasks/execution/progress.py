"""Progress of a stage: bars on a terminal, log lines elsewhere, and a Prefect artifact."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from tqdm import tqdm

from pets_core.progress import Progress

__all__ = ["ProgressArtifact", "ProgressDisplay"]

_LINE_INTERVAL_SECONDS = 10.0
_UPDATE_INTERVAL_SECONDS = 5.0
_MIN_ESTIMATE_SECONDS = 10.0


class _TimeEstimate:
    """Remaining time of a stage at its average speed so far."""

    def __init__(self) -> None:
        self._stage, self._done, self._started, self._first_done = "", 0, 0.0, 0

    def update(self, progress: Progress) -> str:
        """Record a report. Return the time left, such as "01:00 left", or "" too early."""
        if progress.stage != self._stage or progress.done < self._done:
            self._stage = progress.stage
            self._started, self._first_done = time.monotonic(), progress.done
        self._done = progress.done
        done = progress.done - self._first_done
        elapsed = time.monotonic() - self._started
        # The first steps take longer than the later ones.
        if done <= 0 or elapsed < _MIN_ESTIMATE_SECONDS:
            return ""
        seconds = elapsed / done * (progress.total - progress.done)
        return f"{tqdm.format_interval(seconds)} left"


def _line(progress: Progress, left: str) -> str:
    counts = f"{progress.stage} {progress.done}/{progress.total} {progress.unit}"
    return ", ".join(part for part in (counts, progress.detail, left) if part)


class ProgressArtifact:
    """Progress artifact of the task run. Create it in the thread of the task.

    Args:
        key: Key of the artifact.
        logger: Logs updates that fail.
    """

    def __init__(self, key: str, logger: Any) -> None:
        self._logger, self._estimate, self._last = logger, _TimeEstimate(), 0.0
        self._id: Any = None
        self._update_thread = threading.Thread()
        with self._log_errors():
            self._id = create_progress_artifact(0.0, key=key, description="starting")

    def update(self, progress: Progress) -> None:
        """Send a progress report in a thread, at most every few seconds.

        A request to a server that hangs takes six minutes. Waiting for it would leave the output of
        the ranks unread, and they block once the pipe is full.
        """
        if progress.unit == "epochs":
            return
        left = self._estimate.update(progress)
        is_recent = time.monotonic() - self._last < _UPDATE_INTERVAL_SECONDS
        if is_recent or self._update_thread.is_alive():
            return
        self._last = time.monotonic()
        report = (100 * progress.done / progress.total, _line(progress, left))
        self._update_thread = threading.Thread(target=self._send, args=report, daemon=True)
        self._update_thread.start()

    def end(self) -> None:
        """Set the artifact to 100%."""
        if self._update_thread.is_alive():
            self._update_thread.join()
        self._send(100.0, "done")

    def _send(self, percent: float, description: str) -> None:
        if self._id is not None:
            with self._log_errors():
                update_progress_artifact(self._id, percent, description)

    @contextmanager
    def _log_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - an unreachable server must not fail a training
            self._logger.warning("Progress artifact not updated: %s", error)


class ProgressDisplay:
    """Progress display of one stage; use within `contextlib.closing`.

    Draws a bar on a terminal. Elsewhere it logs a line every ten seconds.

    Args:
        logger: Logs a line for each epoch, and the progress if there is no terminal.
    """

    def __init__(self, logger: Any) -> None:
        self._logger = logger
        self._bar: tqdm[Any] | None = None
        self._bar_key = ("", "")
        self._estimate = _TimeEstimate()
        self._last_line = time.monotonic()
        self._is_terminal = sys.stderr.isatty()

    def __call__(self, progress: Progress) -> None:
        """Display a progress report."""
        if progress.unit == "epochs":
            self.close()
            self._logger.info("epoch %d/%d %s", progress.done, progress.total, progress.detail)
            return
        left = self._estimate.update(progress)
        if self._is_terminal:
            self._draw(progress)
        elif time.monotonic() - self._last_line > _LINE_INTERVAL_SECONDS:
            self._last_line = time.monotonic()
            self._logger.info("%s", _line(progress, left))

    def _draw(self, progress: Progress) -> None:
        key = (progress.stage, progress.unit)
        if self._bar is None or key != self._bar_key:
            self.close()
            self._bar_key = key
            self._bar = tqdm(
                total=progress.total, desc=progress.stage, unit=f" {progress.unit}", leave=False
            )
        self._bar.total = progress.total
        self._bar.set_postfix_str(progress.detail, refresh=False)
        self._bar.update(progress.done - self._bar.n)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
