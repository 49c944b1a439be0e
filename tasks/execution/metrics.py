"""How a stage fares, for Prometheus: pushed to a gateway, for a flow process is gone when asked."""

from __future__ import annotations

import platform
import time
from typing import Any

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.exposition import pushadd_to_gateway

from pets_core.progress import Progress

__all__ = ["StageMetrics"]

_EVERY_SECONDS = 15.0
_PATIENCE_SECONDS = 5.0
_JOB = "pets"


class StageMetrics:
    """Pushes what is known of one stage; used as a context around it.

    A gateway that is away ends nothing. What is pushed stays there, by stage and machine, until the
    next stage of the kind on that machine.

    Args:
        gateway: Of Prometheus, host:port; None: nothing is pushed.
        stage: The stage.
        logger: Told once of a gateway that takes nothing.
    """

    def __init__(self, gateway: str | None, stage: str, logger: Any) -> None:
        self._gateway, self._stage, self._logger = gateway, stage, logger
        self._registry, self._told = CollectorRegistry(), False
        self._began = self._pushed = time.monotonic()
        self._running = self._gauge("stage_running", "1 while the stage is at work")
        self._seconds = self._gauge("stage_seconds", "Seconds since the stage began")
        self._ratio = self._gauge("stage_progress_ratio", "Share of the stage that is done")
        self._speed = self._gauge("photos_per_second", "Photos trained on or predicted a second")
        self._memory = self._gauge("gpu_memory_bytes", "Most memory of one GPU so far, 0 without")

    def _gauge(self, name: str, about: str) -> Gauge:
        return Gauge(name, about, namespace="pets", registry=self._registry)

    def __enter__(self) -> StageMetrics:
        self._running.set(1)
        self._push()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._running.set(0)
        if error is None:
            self._ratio.set(1)
            self._gauge("stage_success_timestamp_seconds", "When it last came to its end").set(
                time.time()
            )
        self._push()

    def show(self, progress: Progress) -> None:
        """Note one report; the gateway hears of it every few seconds."""
        self._ratio.set(progress.done / progress.total)
        if progress.photos_per_second is not None:
            self._speed.set(progress.photos_per_second)
        self._memory.set(progress.gpu_memory_bytes)
        if time.monotonic() - self._pushed > _EVERY_SECONDS:
            self._push()

    def _push(self) -> None:
        if self._gateway is None:
            return
        self._pushed = time.monotonic()
        self._seconds.set(self._pushed - self._began)
        key = {"stage": self._stage, "instance": platform.node()}
        try:
            pushadd_to_gateway(self._gateway, _JOB, self._registry, key, timeout=_PATIENCE_SECONDS)
        except Exception as error:  # noqa: BLE001 - whatever it is, the stage goes on
            if not self._told:
                self._told = True
                self._logger.warning(
                    "launch.push_gateway = %s takes no metrics: %s", self._gateway, error
                )
