"""Fork server: one child process per job, shared servers, and clean-up of processes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import processes
import pytest

from pets_core.runtime import fork_server
from pets_core.runtime.fork_server import ForkServer, forked, prestart

HELPERS = Path(__file__).parents[1] / "helpers"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux forks")


@pytest.fixture
def environment(monkeypatch) -> dict[str, str]:
    """Environment of helpers/echo_server.py, without idle servers before and after the test."""
    monkeypatch.setattr(fork_server, "_idle_servers", [])
    yield os.environ | {"PYTHONPATH": str(HELPERS)}
    fork_server._close_all()


@pytest.fixture
def run(environment):
    """Function that runs a job to its end and returns its exit code and output."""

    def run_job(*arguments: str, **variables: str) -> tuple[int, str]:
        with forked("echo_server:work", environment | variables, arguments) as job:
            output = job.stdout.read()
            code = job.wait(30)
            job.stdout.close()
        return code, output

    return run_job


def server_and_child(run, **variables: str) -> list[str]:
    return run("ids", **variables)[1].split()[:2]


def test_jobs_share_a_server_but_not_a_process(run) -> None:
    (server, child), (same_server, other) = server_and_child(run), server_and_child(run)
    assert server == same_server
    assert len({server, child, other}) == 3


def test_job_has_arguments_exit_code_and_output(run) -> None:
    assert run("print", "ü", "two words") == (0, "ü two words\n")
    assert run("exit", "7") == (7, "")


@pytest.mark.parametrize(("job", "code"), [("fail", 1), ("die", -signal.SIGKILL)])
def test_crashed_job_does_not_end_its_server(run, job, code) -> None:
    server, _ = server_and_child(run)
    exit_code, output = run(job)
    assert exit_code == code
    assert ("ValueError: the job failed" in output) == (job == "fail")
    assert server_and_child(run)[0] == server


def test_other_environment_or_folder_starts_another_server(run, tmp_path, monkeypatch) -> None:
    first, _ = server_and_child(run)
    second, _ = server_and_child(run, OMP_NUM_THREADS="3")
    assert second != first
    assert processes.wait_for_exit([int(first)])
    monkeypatch.chdir(tmp_path)
    assert run("ids", OMP_NUM_THREADS="3")[1].split()[2] == str(tmp_path)
    assert processes.wait_for_exit([int(second)])


def test_concurrent_jobs_use_separate_servers(run, environment) -> None:
    with forked("echo_server:work", environment, ["wait"]) as job:
        assert job.stdout.readline() == "waiting\n"
        assert server_and_child(run)[0] != str(processes.parent(job.pid))
        job.terminate()
        assert job.wait(30) == -signal.SIGTERM
        job.stdout.close()


def test_prestarted_server_runs_the_first_job(run, environment) -> None:
    before = processes.children(os.getpid())
    prestart("echo_server:work", environment)
    (idle,) = {*processes.children(os.getpid())} - {*before}
    assert server_and_child(run)[0] == str(idle)


def test_idle_server_exits_and_the_next_job_starts_another(run) -> None:
    idle = {"ECHO_IDLE_SECONDS": "0.1"}
    first, _ = server_and_child(run, **idle)
    assert processes.wait_for_exit([int(first)])
    second, _ = server_and_child(run, **idle)
    assert second != first


def test_server_startup_failure_reports_the_reason(run) -> None:
    before = processes.descendants(os.getpid())
    with pytest.raises(ConnectionError, match="exit code 1: no module named torch"):
        run("print", "x", ECHO_BROKEN="1")
    assert processes.descendants(os.getpid()) == before


def test_leaving_the_context_ends_the_job(environment) -> None:
    with forked("echo_server:work", environment, ["wait"]) as job:
        job.stdout.readline()
        server = processes.parent(job.pid)
    job.stdout.close()
    assert processes.wait_for_exit([server, job.pid])


def test_job_ends_when_its_server_is_killed(environment) -> None:
    server = ForkServer("echo_server:work", environment)
    job = server.start(["wait"])
    job.stdout.readline()
    os.kill(processes.parent(job.pid), signal.SIGKILL)
    assert job.wait(30) == -signal.SIGKILL
    assert job.is_orphan
    assert processes.wait_for_exit([job.pid])
    job.stdout.close()
    server.close()


CALLER = """
import os
from pets_core.runtime.fork_server import forked
with forked("echo_server:work", dict(os.environ), ["wait"]) as job:
    print(job.pid, job.stdout.readline(), flush=True)
    job.wait()
"""


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_killed_caller_leaves_no_processes(environment, platform) -> None:
    command = [sys.executable, "-c", CALLER]
    caller = subprocess.Popen(
        command, env=environment | {"ECHO_PLATFORM": platform}, stdout=subprocess.PIPE, text=True
    )
    with caller:
        child = int(caller.stdout.readline().split()[0])
        started = processes.descendants(caller.pid)
        assert child in started
        caller.kill()
    assert processes.wait_for_exit([*started])


IDLE_CALLER = """
import os, time
from pets_core.runtime.fork_server import forked
with forked("echo_server:work", dict(os.environ), ["ids"]) as job:
    print(job.stdout.readline(), flush=True)
    job.wait()
time.sleep(600)
"""


def test_killed_caller_leaves_no_idle_server(environment) -> None:
    command = [sys.executable, "-c", IDLE_CALLER]
    caller = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    with caller:
        server, child, _ = caller.stdout.readline().split()
        assert processes.wait_for_exit([int(child)])
        caller.kill()
    try:
        assert processes.wait_for_exit([int(server)])
    finally:
        # A server that polls the closed connection would occupy a core.
        processes.kill([int(server)])


def test_close_ends_a_server_that_is_still_importing(environment) -> None:
    slow = ForkServer("echo_server:work", environment | {"ECHO_IMPORT_SECONDS": "600"})
    slow.close()
    assert not slow.is_idle


def test_without_fork_each_job_starts_its_own_server(run) -> None:
    mac = {"ECHO_PLATFORM": "darwin"}
    assert run("exit", "3", **mac) == (3, "")
    _, first = server_and_child(run, **mac)
    _, second = server_and_child(run, **mac)
    assert first != second
    assert processes.wait_for_exit([int(first), int(second)])
