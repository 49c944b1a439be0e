"""Prometheus metrics of a stage.

They are pushed to a gateway, since a flow process may end before Prometheus scrapes it.
"""

from __future__ import annotations

import platform
import time
from typing import Any

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.exposition import pushadd_to_gateway

from pets_core.progress import Progress

__all__ = ["StageMetrics"]

_PUSH_INTERVAL_SECONDS = 15.0
_TIMEOUT_SECONDS = 5.0
_JOB = "pets"


class StageMetrics:
    """Context manager that pushes the metrics of one stage to a Prometheus Pushgateway.

    Errors of the gateway do not fail the stage. The gateway keeps the metrics by stage and machine
    until the same stage next runs on that machine.

    Args:
        gateway: Address of the gateway, host:port; None disables pushing.
        stage: Name of the stage.
        logger: Logs the first failed push.
    """

    def __init__(self, gateway: str | None, stage: str, logger: Any) -> None:
        self._gateway, self._stage, self._logger = gateway, stage, logger
        self._registry, self._has_warned = CollectorRegistry(), False
        self._started = self._pushed = time.monotonic()
        self._running = self._gauge("stage_running", "1 while the stage runs, else 0")
        self._seconds = self._gauge("stage_seconds", "Seconds since the stage started")
        self._ratio = self._gauge("stage_progress_ratio", "Completed fraction of the stage")
        self._speed = self._gauge("photos_per_second", "Photos trained on or predicted per second")
        self._memory = self._gauge("gpu_memory_bytes", "Peak memory of one GPU, 0 without one")

    def _gauge(self, name: str, description: str) -> Gauge:
        return Gauge(name, description, namespace="pets", registry=self._registry)

    def __enter__(self) -> StageMetrics:
        self._running.set(1)
        self._push()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._running.set(0)
        if error is None:
            self._ratio.set(1)
            self._gauge("stage_success_timestamp_seconds", "Unix time of the last success").set(
                time.time()
            )
        self._push()

    def update(self, progress: Progress) -> None:
        """Record a progress report; push at most every few seconds."""
        self._ratio.set(progress.done / progress.total)
        if progress.photos_per_second is not None:
            self._speed.set(progress.photos_per_second)
        self._memory.set(progress.gpu_memory_bytes)
        if time.monotonic() - self._pushed > _PUSH_INTERVAL_SECONDS:
            self._push()

    def _push(self) -> None:
        if self._gateway is None:
            return
        self._pushed = time.monotonic()
        self._seconds.set(self._pushed - self._started)
        key = {"stage": self._stage, "instance": platform.node()}
        try:
            pushadd_to_gateway(self._gateway, _JOB, self._registry, key, timeout=_TIMEOUT_SECONDS)
        except Exception as error:  # noqa: BLE001 - an error here must not fail the stage
            if not self._has_warned:
                self._has_warned = True
                self._logger.warning(
                    "launch.push_gateway = %s: cannot push metrics: %s", self._gateway, error
                )
