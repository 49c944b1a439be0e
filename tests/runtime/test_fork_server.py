"""The process that forks a child for each stage: what is shared, and what is not left behind."""

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
    """What a server of helpers/echo_server.py needs; none is kept from another test, or after."""
    monkeypatch.setattr(fork_server, "_idle_servers", [])
    yield os.environ | {"PYTHONPATH": str(HELPERS)}
    fork_server._close_all()


@pytest.fixture
def run(environment):
    """Run a job to its end; returns its exit code and what it printed."""

    def run_job(*arguments: str, **variables: str) -> tuple[int, str]:
        with forked("echo_server", environment | variables, arguments) as job:
            printed = job.stdout.read()
            code = job.wait(30)
            job.stdout.close()
        return code, printed

    return run_job


def server_and_child(run, **variables: str) -> list[str]:
    return run("ids", **variables)[1].split()[:2]


def test_jobs_share_a_server_and_have_a_process_each(run) -> None:
    (server, child), (again, other) = server_and_child(run), server_and_child(run)
    assert server == again
    assert len({server, child, other}) == 3


def test_a_job_has_its_arguments_exit_code_and_output(run) -> None:
    assert run("say", "ü", "two words") == (0, "ü two words\n")
    assert run("exit", "7") == (7, "")


@pytest.mark.parametrize(("job", "code"), [("fail", 1), ("die", -signal.SIGKILL)])
def test_a_job_that_crashes_takes_no_other_with_it(run, job, code) -> None:
    server, _ = server_and_child(run)
    found, printed = run(job)
    assert found == code
    assert ("ValueError: the job failed" in printed) == (job == "fail")
    assert server_and_child(run)[0] == server


def test_another_environment_or_folder_has_another_server(run, tmp_path, monkeypatch) -> None:
    first, _ = server_and_child(run)
    second, _ = server_and_child(run, OMP_NUM_THREADS="3")
    assert second != first
    assert processes.gone([int(first)])
    monkeypatch.chdir(tmp_path)
    assert run("ids", OMP_NUM_THREADS="3")[1].split()[2] == str(tmp_path)
    assert processes.gone([int(second)])


def test_jobs_at_the_same_time_have_a_server_each(run, environment) -> None:
    with forked("echo_server", environment, ["wait"]) as job:
        assert job.stdout.readline() == "waiting\n"
        assert server_and_child(run)[0] != str(processes.parent(job.pid))
        job.terminate()
        assert job.wait(30) == -signal.SIGTERM
        job.stdout.close()


def test_a_server_started_ahead_serves_the_first_job(run, environment) -> None:
    before = processes.children(os.getpid())
    prestart("echo_server", environment)
    (kept,) = {*processes.children(os.getpid())} - {*before}
    assert server_and_child(run)[0] == str(kept)


def test_an_idle_server_exits_and_the_next_job_starts_another(run) -> None:
    idle = {"ECHO_IDLE_SECONDS": "0.1"}
    first, _ = server_and_child(run, **idle)
    assert processes.gone([int(first)])
    second, _ = server_and_child(run, **idle)
    assert second != first


def test_a_server_that_does_not_start_says_why(run) -> None:
    before = processes.below(os.getpid())
    with pytest.raises(ConnectionError, match="exit code 1: no module named torch"):
        run("say", "x", ECHO_BROKEN="1")
    assert processes.below(os.getpid()) == before


def test_leaving_a_job_ends_it(environment) -> None:
    with forked("echo_server", environment, ["wait"]) as job:
        job.stdout.readline()
        server = processes.parent(job.pid)
    job.stdout.close()
    assert processes.gone([server, job.pid])


def test_a_job_ends_with_its_server(environment) -> None:
    server = ForkServer("echo_server", environment)
    job = server.start(["wait"])
    job.stdout.readline()
    os.kill(processes.parent(job.pid), signal.SIGKILL)
    assert job.wait(30) == -signal.SIGKILL
    assert job.is_orphan
    assert processes.gone([job.pid])
    job.stdout.close()
    server.close()


CALLER = """
import os
from pets_core.runtime.fork_server import forked
with forked("echo_server", dict(os.environ), ["wait"]) as job:
    print(job.pid, job.stdout.readline(), flush=True)
    job.wait()
"""


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_no_process_outlives_a_caller_that_is_killed(environment, platform) -> None:
    command = [sys.executable, "-c", CALLER]
    caller = subprocess.Popen(
        command, env=environment | {"ECHO_PLATFORM": platform}, stdout=subprocess.PIPE, text=True
    )
    with caller:
        child = int(caller.stdout.readline().split()[0])
        started = processes.below(caller.pid)
        assert child in started
        caller.kill()
    assert processes.gone([*started])


IDLE_CALLER = """
import os, time
from pets_core.runtime.fork_server import forked
with forked("echo_server", dict(os.environ), ["ids"]) as job:
    print(job.stdout.readline(), flush=True)
    job.wait()
time.sleep(600)
"""


def test_an_idle_server_does_not_outlive_a_caller_that_is_killed(environment) -> None:
    command = [sys.executable, "-c", IDLE_CALLER]
    caller = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    with caller:
        server, child, _ = caller.stdout.readline().split()
        assert processes.gone([int(child)])
        caller.kill()
    try:
        assert processes.gone([int(server)])
    finally:
        # One that reads the closed connection again and again would take a core from other tests.
        processes.kill([int(server)])


def test_a_server_that_still_imports_is_ended_at_once(environment) -> None:
    slow = ForkServer("echo_server", environment | {"ECHO_IMPORT_SECONDS": "600"})
    slow.close()
    assert not slow.is_idle


def test_without_fork_each_job_has_a_server_of_its_own(run) -> None:
    mac = {"ECHO_PLATFORM": "darwin"}
    assert run("exit", "3", **mac) == (3, "")
    _, first = server_and_child(run, **mac)
    _, second = server_and_child(run, **mac)
    assert first != second
    assert processes.gone([int(first), int(second)])
