"""Prometheus metrics of the model server."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from pets.model import ModelReference

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["MeasureRequests", "ServerMetrics"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_PATHS = ("/", "/health", "/ready", "/metrics", "/model", "/predict", "/recommend")
_BATCH_SIZES = (1, 2, 4, 8, 16, 32)


class ServerMetrics:
    """Metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        own: dict[str, Any] = {"registry": self._registry}
        self.requests = Counter(
            "pets_serve_requests", "Requests by path and status", ["path", "status"], **own
        )
        self.seconds = Histogram(
            "pets_serve_request_seconds", "Duration of requests", ["path"],
            buckets=_SECONDS, **own,
        )  # fmt: skip
        self.photos = Counter(
            "pets_serve_photos", "Photos by result (predicted or unreadable)", ["result"], **own
        )
        self.batch = Histogram(
            "pets_serve_batch_photos", "Photos per batch", buckets=_BATCH_SIZES, **own
        )
        self.updates = Counter(
            "pets_serve_model_updates",
            "Attempts to open another model, by result",
            ["result"],
            **own,
        )
        self._model = Gauge(
            "pets_serve_model_info", "The served model", ["url", "alias", "run_id"], **own
        )

    def set_model(self, model: ModelReference) -> None:
        """Show the served model."""
        self._model.clear()
        self._model.labels(*model.printable()).set(1)

    def text(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class MeasureRequests:
    """ASGI middleware that counts requests and measures their duration.

    Args:
        app: The application.
        metrics: Metrics of the server.
    """

    def __init__(self, app: ASGIApp, metrics: ServerMetrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.monotonic(), 500

        async def record(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._app(scope, receive, record)
        finally:
            # Paths that do not exist are one label, since clients choose them.
            path = scope["path"] if scope["path"] in _PATHS else "other"
            self._metrics.requests.labels(path, str(status)).inc()
            self._metrics.seconds.labels(path).observe(time.monotonic() - started)
