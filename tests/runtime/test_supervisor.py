"""Ranks of one machine: rendezvous, and the end of all ranks if one ends."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import processes
import pytest

from pets_core.runtime.fork_server import ForkServer, Job

HELPERS = Path(__file__).parents[1] / "helpers"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux forks")


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    running = ForkServer("rank_server:run", os.environ | {"PYTHONPATH": str(HELPERS)})
    yield running
    running.close()


@pytest.fixture
def start(server) -> Iterator:
    """Function that starts ranks and returns the job and the process id of each rank."""
    jobs: list[Job] = []

    def start_ranks(num_ranks: int, action: str) -> tuple[Job, dict[int, int]]:
        job = server.start([str(num_ranks), action])
        jobs.append(job)
        lines = (job.stdout.readline().split() for _ in range(num_ranks))
        return job, {int(number): int(pid) for _, number, pid in lines}

    yield start_ranks
    for job in jobs:
        job.kill()
        job.wait(30)
        job.stdout.close()


@pytest.fixture
def run(server):
    """Function that runs ranks to their end and returns the exit code and output lines."""

    def run_ranks(num_ranks: int, action: str) -> tuple[int, list[str]]:
        job = server.start([str(num_ranks), action])
        code = job.wait(30)
        with job.stdout as output:
            return code, output.read().splitlines()

    return run_ranks


def test_ranks_have_numbers_and_share_a_store(run) -> None:
    code, lines = run(3, "meet")
    assert code == 0
    assert sorted(lines) == ["0 0 3 3", "1 1 3 3", "2 2 3 3"]


def test_single_rank_has_no_store(run) -> None:
    assert run(1, "meet") == (0, ["None None None None"])


@pytest.mark.parametrize(
    ("action", "reason"), [("fail", "exit code 3"), ("raise", "exit code 1"), ("die", "SIGKILL")]
)
def test_failed_rank_ends_the_others(run, action, reason) -> None:
    code, lines = run(3, action)
    assert code == 1
    assert f"rank 1 ended with {reason}" in lines
    stopped = sorted(line for line in lines if line.endswith("received SIGTERM"))
    assert stopped == ["rank 0 received SIGTERM", "rank 2 received SIGTERM"]
    assert ("ValueError: a rank failed" in lines) == (action == "raise")


def test_sigterm_ends_all_ranks(start) -> None:
    job, pids = start(2, "wait")
    job.terminate()
    assert job.wait(30) == 1
    assert sorted(job.stdout) == ["rank 0 received SIGTERM\n", "rank 1 received SIGTERM\n"]
    assert processes.wait_for_exit([*pids.values()])


def test_rank_that_ignores_sigterm_is_killed(start) -> None:
    job, pids = start(2, "stubborn")
    os.kill(pids[0], signal.SIGSTOP)
    job.terminate()
    assert job.wait(30) == 1
    assert "rank 1 received SIGTERM\n" in job.stdout
    assert processes.wait_for_exit([*pids.values()])


def test_ranks_are_killed_with_their_launcher(start) -> None:
    job, pids = start(2, "stubborn")
    started = processes.descendants(job.pid)
    assert len(started) == 3, "a store and two ranks"
    job.kill()
    assert job.wait(30) == -signal.SIGKILL
    assert processes.wait_for_exit([*started, *pids.values()])


def test_launcher_has_a_single_thread(start) -> None:
    """With further threads, a fork may inherit a locked lock and hang."""
    job, _ = start(2, "wait")
    assert processes.other_threads(job.pid) == []
