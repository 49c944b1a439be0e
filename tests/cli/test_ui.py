"""Addresses that `pets ui` opens. tests/browser opens the pages of a local server."""

import subprocess
import sys

import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_UI_URL, temporary_settings

from pets.cli import main as cli

RUN = "0d9f6ac9-38b0-4b4c-8d0f-2f1a4f6c1b11"
CLOUD_API = "https://api.prefect.cloud/api/accounts/a/workspaces/w"
CLOUD_UI = "https://app.prefect.cloud/account/a/workspace/w"


@pytest.mark.parametrize(
    ("settings", "root", "page"),
    [
        ({PREFECT_API_URL: "http://host:4200/api"}, "http://host:4200/v2", "?tab=Artifacts"),
        ({PREFECT_API_URL: "http://host:4200/api/"}, "http://host:4200/v2", "?tab=Artifacts"),
        (
            {PREFECT_API_URL: "http://host:4200/api", PREFECT_UI_URL: "https://ui.example/p"},
            "https://ui.example/p/v2",
            "?tab=Artifacts",
        ),
        ({PREFECT_API_URL: CLOUD_API}, CLOUD_UI, ""),
    ],
)
def test_pages_of_the_configured_server(capsys, settings, root, page):
    with temporary_settings(settings):
        cli.main(["ui", RUN, "--no-browser"])
        cli.main(["ui", "--no-browser"])
    assert capsys.readouterr().out.split() == [f"{root}/runs/flow-run/{RUN}{page}", f"{root}/runs"]


@pytest.mark.parametrize("port", ["0", "99999"])
def test_port_out_of_range_is_rejected(refused, port):
    (line,) = refused("ui", "--port", port)
    assert line == f"--port = {port}: must be from 1 to 65535"


def test_server_that_exits_is_reported_with_a_remedy(refused, monkeypatch, tmp_path):
    start = subprocess.Popen
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.setattr(
        "pets.cli.ui.subprocess.Popen", lambda *_, **__: start([sys.executable, "-c", "exit(3)"])
    )
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        (line,) = refused("ui", "--no-browser", "--port", "1")
    assert line == (
        "the Prefect server of this command did not start (exit code 3). "
        "Port 1 may be in use: set another --port"
    )
