"""Shows a stage's progress: bars on a terminal, plain log lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from tqdm import tqdm

from pets_core.progress import Progress

__all__ = ["ProgressDisplay"]

_LINE_EVERY_SECONDS = 10.0


class ProgressDisplay:
    """Draws what it is told; used as a context around one stage.

    Args:
        logger: Takes a line for each epoch, and every ten seconds where there is no terminal.
    """

    def __init__(self, logger: Any) -> None:
        self._logger = logger
        self._bar: tqdm[Any] | None = None
        self._bar_key = ("", "")
        self._stage, self._done, self._began, self._began_at = "", 0, 0.0, 0
        self._last_line = time.monotonic()
        self._terminal = sys.stderr.isatty()

    def __enter__(self) -> ProgressDisplay:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def __call__(self, progress: Progress) -> None:
        """Show one report."""
        if progress.unit == "epochs":
            self._close()
            self._logger.info("epoch %d/%d %s", progress.done, progress.total, progress.detail)
            return
        if progress.stage != self._stage or progress.done < self._done:
            self._stage = progress.stage
            self._began, self._began_at = time.monotonic(), progress.done
        self._done = progress.done
        if self._terminal:
            self._draw(progress)
        elif time.monotonic() - self._last_line > _LINE_EVERY_SECONDS:
            self._last_line = time.monotonic()
            self._logger.info(
                "%s %d/%d %s %s%s",
                progress.stage, progress.done, progress.total, progress.unit, progress.detail,
                self._left(progress),
            )  # fmt: skip

    def _left(self, progress: Progress) -> str:
        """How long the rest takes at the speed so far; the bars of tqdm tell it themselves."""
        done = progress.done - self._began_at
        if done <= 0:
            return ""
        seconds = (time.monotonic() - self._began) / done * (progress.total - progress.done)
        return f", {tqdm.format_interval(seconds)} left"

    def _draw(self, progress: Progress) -> None:
        key = (progress.stage, progress.unit)
        if self._bar is None or key != self._bar_key:
            self._close()
            self._bar_key = key
            self._bar = tqdm(
                total=progress.total, desc=progress.stage, unit=f" {progress.unit}", leave=False
            )
        self._bar.total = progress.total
        self._bar.set_postfix_str(progress.detail, refresh=False)
        self._bar.update(progress.done - self._bar.n)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
