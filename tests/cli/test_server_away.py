"""Unreachable and failing Prefect servers: results stay stored, the error is one line."""

import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import prefect
import pytest
from predictions_of import info_of

from pets_core.evaluation.predictions import write_predictions
from pets_core.targets.classes.target import CLASSES

TINY = {
    "PETS_MODEL__BACKBONE": "test_efficientnet",
    "PETS_MODEL__WEIGHTS": "none",
    "PETS_MODEL__IMAGE_SIZE": "64",
    "PETS_LAUNCH__NUM_PROCESSES": "1",
}


COMMAND = [sys.executable, "-m", "pets"]


@pytest.fixture
def no_server(tmp_path) -> dict[str, str]:
    """Environment of a command whose Prefect server is unreachable."""
    return os.environ | {
        "PREFECT_API_URL": "http://127.0.0.1:9/api", "PREFECT_HOME": str(tmp_path / "home"),
        "PETS_STORE": str(tmp_path / "store"),
    }  # fmt: skip


@pytest.mark.slow
def test_evaluation_of_predictions_needs_no_server(no_server, tmp_path):
    predictions = str(tmp_path / "predictions.parquet")
    outputs = np.eye(4, dtype=np.float32)
    info = info_of(list("abcd"))
    write_predictions(predictions, CLASSES, info, list("wxyz"), np.arange(4), outputs)
    done = subprocess.run(
        [*COMMAND, "evaluate", "--from", predictions],
        env=no_server, capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "warning: Failed to reach API at http://127.0.0.1:9/api" in done.stderr
    assert "Results are not published there" in done.stderr
    assert Path(re.search(r"Report +(\S+)", done.stdout).group(1)).is_file()


def test_run_requires_a_reachable_server(no_server, tmp_path):
    done = subprocess.run(
        [*COMMAND, "run"], env=no_server, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 2
    assert re.match(
        r"error: PREFECT_API_URL = http://127.0.0.1:9/api: Failed to reach .*unset it", done.stderr
    )
    assert not (tmp_path / "store").exists()


@pytest.mark.nightly
def test_evaluation_is_stored_if_the_server_dies(stopped_server, drawn_sample, tmp_path):
    environment = stopped_server.environment | TINY | {
        "PETS_SOURCE__URL": str(drawn_sample), "PETS_STORE": str(tmp_path / "store"),
        "PETS_CACHE_DIR": str(tmp_path / "cache"),
        # By default, Prefect's client retries each request for a minute.
        "PREFECT_CLIENT_MAX_RETRIES": "0",
    }  # fmt: skip
    with stopped_server.started():
        trained = subprocess.run(
            [*COMMAND, "train", "--train.epochs", "0", "--train.base_lr", "1e-3"],
            env=environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert trained.returncode == 0, trained.stderr[-3000:]
        model = re.search(r'"model_url": "(.+)"', trained.stdout).group(1)
        evaluation = subprocess.Popen(
            [*COMMAND, "evaluate", model], env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        lines = []
        for line in evaluation.stdout:
            lines.append(line)
            if "points at no model yet" in line:
                break
    rest, _ = evaluation.communicate(timeout=300)
    printed = "".join(lines) + rest
    reports = list(Path(tmp_path / "store/runs").glob("*/evaluation/report.html"))
    assert len(reports) == 1, printed[-5000:]
    assert "not published in the Prefect UI: confusion-matrix" in printed
    assert str(reports[0].parent) in printed
    assert evaluation.returncode == 1
    assert "error: the Prefect server is unreachable" in printed
    assert f"Completed work is stored in {tmp_path / 'store'}/runs" in printed


def test_server_error_is_reported_in_one_line(no_server, drawn_sample, tmp_path):
    class Failing(BaseHTTPRequestHandler):
        """Return the version and fail all else, as a server with a full database does."""

        def answer(self) -> None:
            is_version = self.path == "/api/admin/version"
            self.send_response(200 if is_version else 500)
            self.end_headers()
            self.wfile.write(f'"{prefect.__version__}"'.encode() if is_version else b"{}")

        do_GET = do_POST = answer  # noqa: N815 - names of http.server

        def log_message(self, *_) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Failing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/api"
        environment = no_server | {"PREFECT_API_URL": url, "PETS_SOURCE__URL": str(drawn_sample)}
        done = subprocess.run(
            [*COMMAND, "ingest"], env=environment, capture_output=True, text=True, timeout=180
        )
        server.shutdown()
    assert done.returncode == 1
    assert "error: the Prefect server failed: Server error '500" in done.stderr
    assert "Traceback" not in done.stderr
