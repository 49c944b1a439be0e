"""The temporary Prefect server of a command."""

import os
import shutil
import subprocess
import sys

import processes
import pytest

SERVE = """
import sys
from pets.cli.server import start_temporary_server
start_temporary_server()()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
@pytest.mark.parametrize("is_killed", [False, True])
def test_temporary_server_exits_with_its_command(tmp_path, prefect_home, is_killed) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    environment["PREFECT_HOME"] = str(shutil.copytree(prefect_home, tmp_path / "home"))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", SERVE], env=environment, **pipes) as command:
        assert command.stdout.readline() == b"ready\n"
        started = processes.descendants(command.pid)
        assert started
        if is_killed:
            command.kill()
    assert processes.wait_for_exit(started)
