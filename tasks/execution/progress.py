"""Shows a stage's progress: bars on a terminal, plain log lines elsewhere, and in an artifact."""

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

_LINE_EVERY_SECONDS = 10.0
_UPDATE_EVERY_SECONDS = 5.0


class _Reckoning:
    """How long the rest takes at the speed so far."""

    def __init__(self) -> None:
        self._stage, self._done, self._began, self._began_at = "", 0, 0.0, 0

    def left(self, progress: Progress) -> str:
        """Note how far a stage is; "01:00 left" once there is a speed."""
        if progress.stage != self._stage or progress.done < self._done:
            self._stage = progress.stage
            self._began, self._began_at = time.monotonic(), progress.done
        self._done = progress.done
        done = progress.done - self._began_at
        if done <= 0:
            return ""
        seconds = (time.monotonic() - self._began) / done * (progress.total - progress.done)
        return f"{tqdm.format_interval(seconds)} left"


def _line(progress: Progress, left: str) -> str:
    about = f"{progress.stage} {progress.done}/{progress.total} {progress.unit}"
    return ", ".join(part for part in (about, progress.detail, left) if part)


class ProgressArtifact:
    """Keeps a progress artifact of the task run up to date; made in the task's own thread.

    Args:
        key: Of the artifact.
        logger: Told when the server cannot be.
    """

    def __init__(self, key: str, logger: Any) -> None:
        self._logger, self._reckoning, self._last = logger, _Reckoning(), 0.0
        self._id: Any = None
        self._update_under_way = threading.Thread()
        with self._telling():
            self._id = create_progress_artifact(0.0, key=key, description="starting")

    def show(self, progress: Progress) -> None:
        """Show one report; the server hears of it every few seconds, and is not waited for.

        A server that hangs would be waited for six minutes, in which nobody reads what the ranks
        print, and they stand still once the pipe is full.
        """
        if progress.unit == "epochs":
            return
        left = self._reckoning.left(progress)
        waits = time.monotonic() - self._last < _UPDATE_EVERY_SECONDS
        if waits or self._update_under_way.is_alive():
            return
        self._last = time.monotonic()
        report = (100 * progress.done / progress.total, _line(progress, left))
        self._update_under_way = threading.Thread(target=self._update, args=report, daemon=True)
        self._update_under_way.start()

    def end(self) -> None:
        """All is done."""
        if self._update_under_way.is_alive():
            self._update_under_way.join()
        self._update(100.0, "done")

    def _update(self, percent: float, description: str) -> None:
        if self._id is not None:
            with self._telling():
                update_progress_artifact(self._id, percent, description)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - a server that is away must not end a training
            self._logger.warning("the progress artifact was not updated: %s", error)


class ProgressDisplay:
    """Draws what it is told of one stage; used within `contextlib.closing`.

    Args:
        logger: Takes a line for each epoch, and every ten seconds where there is no terminal.
    """

    def __init__(self, logger: Any) -> None:
        self._logger = logger
        self._bar: tqdm[Any] | None = None
        self._bar_key = ("", "")
        self._reckoning = _Reckoning()
        self._last_line = time.monotonic()
        self._terminal = sys.stderr.isatty()

    def __call__(self, progress: Progress) -> None:
        """Show one report."""
        if progress.unit == "epochs":
            self.close()
            self._logger.info("epoch %d/%d %s", progress.done, progress.total, progress.detail)
            return
        left = self._reckoning.left(progress)
        if self._terminal:
            self._draw(progress)
        elif time.monotonic() - self._last_line > _LINE_EVERY_SECONDS:
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
