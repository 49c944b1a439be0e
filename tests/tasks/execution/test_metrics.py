"""Metrics of a stage that are pushed to Prometheus."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pets_core.progress import Progress
from tasks.execution import metrics
from tasks.execution.metrics import StageMetrics


class Logger:
    def __init__(self) -> None:
        self.messages: list[str] = []

    def warning(self, template, *values) -> None:
        self.messages.append(template % values)


@pytest.fixture
def gateway():
    """Start a push gateway; yield its address and the pushes as (path, values)."""
    pushes: list[tuple[str, dict[str, float]]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            text = self.rfile.read(int(self.headers["Content-Length"])).decode()
            families = text_string_to_metric_families(text)
            pushes.append((self.path, {s.name: s.value for f in families for s in f.samples}))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}", pushes
        server.shutdown()


def test_metrics_are_pushed_during_a_stage_and_at_its_end(gateway, monkeypatch) -> None:
    address, pushes = gateway
    monkeypatch.setattr(metrics, "_PUSH_INTERVAL_SECONDS", 0.0)
    with StageMetrics(address, "train", Logger()) as stage:
        stage.update(Progress(stage="train", done=1, total=4, unit="steps", photos_per_second=31.0,
                            gpu_memory_bytes=5 << 30))  # fmt: skip
        stage.update(Progress(stage="train", done=3, total=4, unit="steps"))
    (first_path, first), (_, working), _, (_, last) = pushes
    assert "/metrics/job/pets/" in first_path
    assert "stage/train" in first_path
    assert first["pets_stage_running"] == 1
    assert working["pets_photos_per_second"] == 31.0
    assert working["pets_gpu_memory_bytes"] == 5 << 30
    assert working["pets_stage_progress_ratio"] == 0.25
    assert last["pets_photos_per_second"] == 31.0, "the last reported throughput"
    assert (last["pets_stage_running"], last["pets_stage_progress_ratio"]) == (0, 1)
    assert last["pets_stage_seconds"] > 0
    assert last["pets_stage_success_timestamp_seconds"] > 1e9


def test_failed_stage_pushes_no_success_timestamp(gateway) -> None:
    address, pushes = gateway
    with pytest.raises(ZeroDivisionError), StageMetrics(address, "train", Logger()):
        raise ZeroDivisionError
    assert pushes[-1][1]["pets_stage_running"] == 0
    assert "pets_stage_success_timestamp_seconds" not in pushes[-1][1]


def test_an_unreachable_gateway_is_logged_once(monkeypatch) -> None:
    monkeypatch.setattr(metrics, "_PUSH_INTERVAL_SECONDS", 0.0)
    logger = Logger()
    with StageMetrics("127.0.0.1:9", "train", logger) as stage:
        stage.update(Progress(stage="train", done=1, total=4, unit="steps"))
    (message,) = logger.messages
    assert message.startswith("launch.push_gateway = 127.0.0.1:9: cannot push metrics")


def test_metrics_are_not_pushed_without_a_gateway(gateway) -> None:
    with StageMetrics(None, "train", Logger()) as stage:
        stage.update(Progress(stage="train", done=1, total=4, unit="steps"))
    assert gateway[1] == []
