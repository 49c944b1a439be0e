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
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def descendants(root: int) -> list[int]:
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        parents[int(status.parent.name)] = int(fields[1])
    found, new = [], [root]
    while new:
        new = [pid for pid, parent in parents.items() if parent in new]
        found += new
    return found


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"]
)
def test_a_stopped_run_leaves_nothing_and_is_seen_to_have_ended(
    tmp_path, drawn_sample, number, code
):
    terminal, side = pty.openpty()
    termios.tcsetwinsize(side, (40, 120))
    command = [
        sys.executable, "-m", "flows.cli", "run", "--source.url", str(drawn_sample),
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
    while b"lr-find:" not in said:
        assert process.poll() is None, said.decode()
        assert time.monotonic() < deadline, said.decode()
        time.sleep(0.2)
    started = descendants(process.pid)
    assert started
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # what a terminal does: to the whole foreground group
    else:
        process.send_signal(number)
    assert process.wait(timeout=60) == code
    reader.join(timeout=10)
    assert ("\nstopped\r\n" in said.decode()) == (number == signal.SIGINT)
    assert "Unable to connect" not in said.decode()
    assert not [pid for pid in started if Path(f"/proc/{pid}").exists()]
    with sqlite3.connect(tmp_path / "prefect/prefect.db") as database:
        assert database.execute("select state_name from flow_run").fetchall() == [("Crashed",)]


def _read(terminal: int, said: bytearray) -> None:
    while True:
        try:
            chunk = os.read(terminal, 4096)
        except OSError:  # every process at the other end is gone
            return
        if not chunk:
            return
        said += chunk
