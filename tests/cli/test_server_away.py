"""A Prefect server that is gone in the middle of a run: what was done stays, and is told."""

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
def nowhere(tmp_path) -> dict[str, str]:
    """The environment of a command whose server does not answer."""
    return os.environ | {
        "PREFECT_API_URL": "http://127.0.0.1:9/api", "PREFECT_HOME": str(tmp_path / "home"),
        "PETS_STORE": str(tmp_path / "store"),
    }  # fmt: skip


@pytest.mark.slow
def test_a_review_goes_on_where_no_server_answers(nowhere, tmp_path):
    predictions = str(tmp_path / "predictions.parquet")
    outputs = np.eye(4, dtype=np.float32)
    info = info_of(list("abcd"))
    write_predictions(predictions, CLASSES, info, list("wxyz"), np.arange(4), outputs)
    done = subprocess.run(
        [*COMMAND, "evaluate", "--from", predictions],
        env=nowhere, capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "warning: Failed to reach API at http://127.0.0.1:9/api" in done.stderr
    assert "Results are not published there" in done.stderr
    assert Path(re.search(r"Report +(\S+)", done.stdout).group(1)).is_file()


def test_longer_work_is_not_begun_where_nobody_would_see_it(nowhere, tmp_path):
    done = subprocess.run(
        [*COMMAND, "run"], env=nowhere, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 2
    assert re.match(
        r"error: PREFECT_API_URL = http://127.0.0.1:9/api: Failed to reach .*unset it", done.stderr
    )
    assert not (tmp_path / "store").exists()


@pytest.mark.nightly
def test_an_evaluation_is_stored_though_the_server_dies(stopped_server, drawn_sample, tmp_path):
    environment = stopped_server.environment | TINY | {
        "PETS_SOURCE__URL": str(drawn_sample), "PETS_STORE": str(tmp_path / "store"),
        "PETS_CACHE_DIR": str(tmp_path / "cache"),
        # By default it tries for a minute, again and again.
        "PREFECT_CLIENT_MAX_RETRIES": "0",
    }  # fmt: skip
    with stopped_server.started():
        trained = subprocess.run(
            [*COMMAND, "train", "--train.epochs", "0", "--train.base_lr", "1e-3"],
            env=environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert trained.returncode == 0, trained.stderr[-3000:]
        model = re.search(r'"model_url": "(.+)"', trained.stdout).group(1)
        judged = subprocess.Popen(
            [*COMMAND, "evaluate", model], env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        told = []
        for line in judged.stdout:
            told.append(line)
            if "points at no model yet" in line:
                break
    rest, _ = judged.communicate(timeout=300)
    printed = "".join(told) + rest
    reports = list(Path(tmp_path / "store/runs").glob("*/evaluation/report.html"))
    assert len(reports) == 1, printed[-5000:]
    assert "not published in the Prefect UI: confusion-matrix" in printed
    assert str(reports[0].parent) in printed
    assert judged.returncode == 1
    assert "error: the Prefect server is unreachable" in printed
    assert f"Completed work is stored in {tmp_path / 'store'}/runs" in printed


def test_a_server_that_fails_is_told_of_in_one_line(nowhere, drawn_sample, tmp_path):
    class Failing(BaseHTTPRequestHandler):
        """Knows its version, and can do nothing, as with a database that is full."""

        def answer(self) -> None:
            good = self.path == "/api/admin/version"
            self.send_response(200 if good else 500)
            self.end_headers()
            self.wfile.write(f'"{prefect.__version__}"'.encode() if good else b"{}")

        do_GET = do_POST = answer  # noqa: N815 - as http.server calls them

        def log_message(self, *_) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Failing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/api"
        environment = nowhere | {"PREFECT_API_URL": url, "PETS_SOURCE__URL": str(drawn_sample)}
        done = subprocess.run(
            [*COMMAND, "ingest"], env=environment, capture_output=True, text=True, timeout=180
        )
        server.shutdown()
    assert done.returncode == 1
    assert "error: the Prefect server failed: Server error '500" in done.stderr
    assert "Traceback" not in done.stderr
