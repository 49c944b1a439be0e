"""Ctrl-C in a real terminal: the run ends as Crashed, prints "stopped", leaves no process."""

import os
import pty
import shutil
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
        # No process remains that could set the final state.
        pytest.param(signal.SIGKILL, -9, "Running", id="SIGKILL", marks=pytest.mark.nightly),
    ],
)
def test_stopped_run_leaves_no_process_and_the_expected_state(
    tmp_path, drawn_sample, prefect_home, number, code, state
):
    controller, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (40, 120))
    command = [
        sys.executable, "-m", "pets", "run", "--source.url", str(drawn_sample),
        "--store", str(tmp_path / "store"), "--cache_dir", str(tmp_path / "cache"),
        "--model.image_size", "32",
    ]  # fmt: skip
    home = shutil.copytree(prefect_home, tmp_path / "prefect")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    process = subprocess.Popen(
        command, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
        env=environment | {"PREFECT_HOME": str(home), "DO_NOT_TRACK": "1"},
    )  # fmt: skip
    os.close(terminal)
    output = bytearray()
    reader = threading.Thread(target=_read, args=(controller, output), daemon=True)
    reader.start()
    deadline = time.monotonic() + 600
    agents = []
    while b"lr-find:" not in output:
        agents = agents or processes.agents(process.pid)
        assert process.poll() is None, output.decode()
        assert time.monotonic() < deadline, output.decode()
        time.sleep(0.2)
    started = processes.descendants(process.pid)
    assert started
    assert agents == processes.agents(process.pid), "one fork server, started early"
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # a terminal signals the whole foreground group
    else:
        process.send_signal(number)
    assert process.wait(timeout=600) == code
    reader.join(timeout=600)
    assert ("\nstopped\r\n" in output.decode()) == (number == signal.SIGINT)
    assert ("To resume the run:" in output.decode()) == (number != signal.SIGKILL)
    assert "Crash detected" not in output.decode()
    assert "Unable to connect" not in output.decode()
    assert processes.wait_for_exit(started)
    with sqlite3.connect(home / "prefect.db") as database:
        assert database.execute("select state_name from flow_run").fetchall() == [(state,)]


def _read(controller: int, output: bytearray) -> None:
    while True:
        try:
            chunk = os.read(controller, 4096)
        except OSError:  # every process on the other end has exited
            return
        if not chunk:
            return
        output += chunk
