"""A schedule really starts runs: with fastapi or SQLAlchemy unpinned it silently does not."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

import pytest

pytestmark = pytest.mark.slow

SERVE = """
import sys
from flows.ingest import ingest_flow
from pets_core.config import PipelineConfig
config = PipelineConfig.model_validate_json(sys.argv[1])
# More often than a run takes, and one at a time: enough to show that they start.
ingest_flow.serve("often", interval=15, limit=1, parameters={"config": config})
"""


def ask(url: str, payload: dict | None = None) -> object:
    data = None if payload is None else json.dumps(payload).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as reply:
        return json.load(reply)


def end(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(timeout=45)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_for(what, seconds: float) -> object:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if found := what():
                return found
        except OSError:
            pass
        time.sleep(0.5)
    pytest.fail(f"{what.__name__} did not come true in {seconds} s")


@pytest.fixture
def api(tmp_path) -> Iterator[tuple[str, dict[str, str]]]:
    """A Prefect server with a database of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    environment = os.environ | {
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_API_URL": url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--port", str(port)]
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:

        def healthy() -> object:
            return ask(f"{url}/health")

        wait_for(healthy, 120)
        yield url, environment
    finally:
        end(server)


def test_a_short_interval_starts_runs(api, small_config, tmp_path) -> None:
    url, environment = api
    arguments = [sys.executable, "-c", SERVE, small_config.model_dump_json(exclude_defaults=True)]
    with (tmp_path / "serve.log").open("w") as log:
        serving = subprocess.Popen(arguments, env=environment, stdout=log, stderr=log)
    try:

        def completed() -> object:
            wanted = {"flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
            return ask(f"{url}/flow_runs/filter", wanted)

        run = wait_for(completed, 180)[0]
    finally:
        end(serving)
    assert run["auto_scheduled"] is True
    assert len(list((tmp_path / "store" / "datasets").rglob("manifest.json"))) == 1
