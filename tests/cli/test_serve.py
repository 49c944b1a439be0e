"""`pets serve`: start, stop and errors."""

import os
import re
import signal
import socket
import subprocess
import sys

import httpx
import pytest
from model_server import write_photo
from tiny_model import write_tiny_model

from pets.cli.main import main


@pytest.fixture(scope="module")
def model_url(tmp_path_factory) -> str:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "model", ["Birman", "Pug"])


@pytest.mark.slow
def test_server_starts_with_the_printed_address_and_ends_at_sigterm(model_url):
    process = subprocess.Popen(
        [sys.executable, "-m", "pets", "serve", model_url, "--port", "0", "--host", "0.0.0.0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PETS_SERVE_TOKEN": ""},
    )  # fmt: skip
    line = process.stdout.readline()
    port = re.fullmatch(rf"Serving {re.escape(model_url)} at http://0\.0\.0\.0:(\d+)\n", line)[1]
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        assert client.get("/ready").status_code == 200
        assert client.post("/predict", content=write_photo(0)).status_code == 200
        process.send_signal(signal.SIGTERM)
    assert process.wait(60) in (0, 143)
    assert "requests from other machines need no token. Set PETS_SERVE_TOKEN" in (
        process.stderr.read()
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max-mb", "0"], "--max-mb = 0: must be at least 0.001"),
        (["--max-mb", "nan"], "--max-mb = nan: must be at least 0.001"),
        (["--max-images", "0"], "--max-images = 0: must be at least 1"),
        (["--poll-seconds", "0"], "--poll-seconds = 0: must be at least 0.1"),
        (["--port", "70000"], "--port = 70000: must be from 0 to 65535"),
        (["--host", "203.0.113.7"], "cannot listen on 203.0.113.7:8000: "),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
    ],
)
def test_invalid_flags_are_refused(model_url, capsys, flags, message):
    with pytest.raises(SystemExit) as ended:
        main(["serve", model_url, *flags])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_idle_connections_outlive_those_of_clients(model_url, monkeypatch):
    """httpx keeps them for 5 s and AWS for 60 s; uvicorn's default is 5 s."""
    started = []
    monkeypatch.setattr("uvicorn.Server.run", lambda self, sockets: started.append(self.config))
    main(["serve", model_url, "--port", "0"])
    assert started[0].timeout_keep_alive > 60


def test_used_port_and_unknown_model_are_refused(tmp_path, model_url, capsys):
    with socket.create_server(("127.0.0.1", 0)) as used:
        port = used.getsockname()[1]
        with pytest.raises(SystemExit) as ended:
            main(["serve", model_url, "--port", str(port)])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use. Set --host" in error
    with pytest.raises(SystemExit) as ended:
        main(["serve", "nothing", "--port", "0", "--store", str(tmp_path)])
    assert ended.value.code == 2
    assert "nothing: no such run" in capsys.readouterr().err
