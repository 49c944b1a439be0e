"""Processes as Linux tells of them: who was started by whom, and whether they are gone."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

__all__ = [
    "agents",
    "arguments",
    "below",
    "children",
    "end",
    "flow_run",
    "gone",
    "kill",
    "launcher",
    "launchers",
    "other_threads",
    "parent",
    "ranks",
]

_PATIENCE_SECONDS = 30


def below(pid: int) -> list[int]:
    """Every process that one has started, and those that these have."""
    return [found for child in children(pid) for found in (child, *below(child))]


def children(pid: int) -> list[int]:
    """The processes that one has started, in the order in which they were."""
    lists = sorted(Path("/proc").glob(f"{pid}/task/*/children"))
    return [int(child) for file in lists for child in file.read_text().split()]


def other_threads(pid: int) -> list[str]:
    """Names of the threads of a process other than its first."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [(task / "comm").read_text().strip() for task in tasks if task.name != str(pid)]


def parent(pid: int) -> int:
    """The process that has started one."""
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def agents(pid: int) -> list[int]:
    """The fork servers below a process; their children have their command line, too."""
    module = "pets_core.runtime.agent"
    found = [child for child in below(pid) if module in arguments(child)]
    return [child for child in found if parent(child) not in found]


def launcher(pid: int) -> int:
    """The one launcher of ranks below a process."""
    (found,) = launchers(pid)
    return found


def launchers(pid: int) -> list[int]:
    """Every launcher of ranks below a process."""
    return [child for agent in agents(pid) for child in children(agent)]


def ranks(pid: int) -> list[int]:
    """The ranks below a process, in order; the store at which several meet is started first."""
    started = [children(found) for found in launchers(pid)]
    return [rank for forks in started for rank in (forks[1:] if len(forks) > 1 else forks)]


def arguments(pid: int) -> list[str]:
    """Its command line; nothing where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []


def gone(pids: list[int], seconds: float = _PATIENCE_SECONDS) -> bool:
    """Whether all of these end in time; one that nobody has waited for yet is gone."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(_lives(pid) for pid in pids):
            return True
        time.sleep(0.05)
    return False


def flow_run(pid: int) -> str:
    """Id of the flow run that a process works on, as its environment has it; empty for none."""
    try:
        variables = Path(f"/proc/{pid}/environ").read_text().split("\0")
    except OSError:
        return ""
    named = (v.partition("=") for v in variables)
    return next((value for name, _, value in named if name == "PREFECT__FLOW_RUN_ID"), "")


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to end, and see to it that it does and that nothing below it goes on."""
    process.terminate()
    try:
        process.wait(timeout=_PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        # What it leaves behind is found only while it is there.
        left = below(process.pid)
        process.kill()
        process.wait()
        kill(left)


def kill(pids: list[int]) -> None:
    """SIGKILL those that are still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"
