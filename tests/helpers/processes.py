"""Process trees under /proc on Linux: parents, children, ranks, and waiting for their exit."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

__all__ = [
    "agents",
    "arguments",
    "children",
    "descendants",
    "end",
    "flow_run",
    "kill",
    "launcher",
    "launchers",
    "other_threads",
    "parent",
    "ranks",
    "wait_for_exit",
]

_TIMEOUT_SECONDS = 30


def descendants(pid: int) -> list[int]:
    """Return all descendants of a process."""
    return [found for child in children(pid) for found in (child, *descendants(child))]


def children(pid: int) -> list[int]:
    """Return the children of a process in the order of their start."""
    lists = sorted(Path("/proc").glob(f"{pid}/task/*/children"))
    return [int(child) for file in lists for child in file.read_text().split()]


def other_threads(pid: int) -> list[str]:
    """Return the names of the threads of a process other than its main thread."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [(task / "comm").read_text().strip() for task in tasks if task.name != str(pid)]


def parent(pid: int) -> int:
    """Return the parent of a process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def agents(pid: int) -> list[int]:
    """Return the fork servers below a process."""
    work = "pets_core.runtime.agent:run_stage"
    found = [child for child in descendants(pid) if work in arguments(child)]
    # Forked children have the same command line.
    return [child for child in found if parent(child) not in found]


def launcher(pid: int) -> int:
    """Return the only rank launcher below a process."""
    (found,) = launchers(pid)
    return found


def launchers(pid: int) -> list[int]:
    """Return all rank launchers below a process."""
    return [child for agent in agents(pid) for child in children(agent)]


def ranks(pid: int) -> list[int]:
    """Return the ranks below a process in order, without the store that several ranks share."""
    started = [children(found) for found in launchers(pid)]
    # The store is started before the ranks.
    return [rank for forks in started for rank in (forks[1:] if len(forks) > 1 else forks)]


def arguments(pid: int) -> list[str]:
    """Return the command line of a process, empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []


def wait_for_exit(pids: list[int], seconds: float = _TIMEOUT_SECONDS) -> bool:
    """Wait and return whether all processes end in time. Zombies count as ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(_is_alive(pid) for pid in pids):
            return True
        time.sleep(0.05)
    return False


def flow_run(pid: int) -> str:
    """Return the flow run id in the environment of a process, empty if there is none."""
    try:
        variables = Path(f"/proc/{pid}/environ").read_text().split("\0")
    except OSError:
        return ""
    pairs = (v.partition("=") for v in variables)
    return next((value for name, _, value in pairs if name == "PREFECT__FLOW_RUN_ID"), "")


def end(process: subprocess.Popen[bytes]) -> None:
    """Terminate a process, or kill it and its descendants after a timeout."""
    process.terminate()
    try:
        process.wait(timeout=_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        # Descendants can only be listed while the process exists.
        remaining = descendants(process.pid)
        process.kill()
        process.wait()
        kill(remaining)


def kill(pids: list[int]) -> None:
    """Send SIGKILL to the processes that still exist."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"
