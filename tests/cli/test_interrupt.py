"""Ctrl-C at a real terminal: the run ends as Crashed, one plain word is said, nothing is left."""

import os
import pty
import signal
import sqlite3
import subprocess
import sys
import termios
import threading
import time

import processes
import pytest


@pytest.mark.parametrize(
    ("number", "code", "state"),
    [
        pytest.param(signal.SIGINT, 130, "Crashed", id="Ctrl-C", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 143, "Crashed", id="SIGTERM", marks=pytest.mark.nightly),
        # Nobody is left to write down how it ended.
        pytest.param(signal.SIGKILL, -9, "Running", id="SIGKILL", marks=pytest.mark.nightly),
    ],
)
def test_a_stopped_run_leaves_nothing_and_is_seen_to_have_ended(
    tmp_path, drawn_sample, number, code, state
):
    terminal, side = pty.openpty()
    termios.tcsetwinsize(side, (40, 120))
    command = [
        sys.executable, "-m", "pets", "run", "--source.url", str(drawn_sample),
        "--store", str(tmp_path / "store"), "--cache_dir", str(tmp_path / "cache"),
        "--model.image_size", "32",
    ]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    process = subprocess.Popen(
        command, stdin=side, stdout=side, stderr=side, start_new_session=True,
        env=environment | {"PREFECT_HOME": str(tmp_path / "prefect"), "DO_NOT_TRACK": "1"},
    )  # fmt: skip
    os.close(side)
    said = bytearray()
    reader = threading.Thread(target=_read, args=(terminal, said), daemon=True)
    reader.start()
    deadline = time.monotonic() + 240
    agents = []
    while b"lr-find:" not in said:
        agents = agents or processes.agents(process.pid)
        assert process.poll() is None, said.decode()
        assert time.monotonic() < deadline, said.decode()
        time.sleep(0.2)
    started = processes.below(process.pid)
    assert started
    assert agents == processes.agents(process.pid), "started ahead, it has done the check as well"
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # what a terminal does: to the whole foreground group
    else:
        process.send_signal(number)
    assert process.wait(timeout=60) == code
    reader.join(timeout=10)
    assert ("\nstopped\r\n" in said.decode()) == (number == signal.SIGINT)
    assert "Unable to connect" not in said.decode()
    assert processes.gone(started)
    with sqlite3.connect(tmp_path / "prefect/prefect.db") as database:
        assert database.execute("select state_name from flow_run").fetchall() == [(state,)]


def _read(terminal: int, said: bytearray) -> None:
    while True:
        try:
            chunk = os.read(terminal, 4096)
        except OSError:  # every process at the other end is gone
            return
        if not chunk:
            return
        said += chunk
