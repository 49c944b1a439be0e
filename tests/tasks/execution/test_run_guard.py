"""States of a flow run in which its process exits."""

from types import SimpleNamespace
from uuid import uuid4

import pytest
from prefect import states

from tasks.execution import run_guard
from tasks.execution.run_guard import _Watch


class ProcessExit(BaseException):
    """Raised in place of the exit of this process."""


class Server:
    """Client of a server that returns the given states of a run in order."""

    def __init__(self, *states, run_count=1) -> None:
        self._states, self._run_count, self.set = list(states), run_count, []

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        pass

    def read_flow_run(self, _):
        state = self._states.pop(0) if len(self._states) > 1 else self._states[0]
        if isinstance(state, Exception):
            raise state
        return SimpleNamespace(state=state, run_count=self._run_count)

    def set_flow_run_state(self, _, state) -> None:
        self.set.append(state)


@pytest.fixture
def watched(monkeypatch):
    """Poll a run three times, or until the process would exit."""

    def watch(server: Server, calls: list | None = None) -> None:
        monkeypatch.setattr(run_guard, "get_client", lambda **_: server)
        monkeypatch.setattr(run_guard, "_send_logs", lambda: None)

        def end(code: int) -> None:
            raise ProcessExit(code)

        monkeypatch.setattr(run_guard.os, "_exit", end)
        monkeypatch.setattr(run_guard.signal, "alarm", lambda _: None)
        remaining = [3]

        def wait(_: float) -> None:
            remaining[0] -= 1

        over = SimpleNamespace(is_set=lambda: remaining[0] == 0, wait=wait)
        logger = SimpleNamespace(warning=lambda *_: None)
        cancelled = [] if calls is None else calls
        _Watch(uuid4(), 1, logger, lambda: cancelled.append(1), over)()

    return watch


def test_the_owner_of_a_run_continues(watched) -> None:
    watched(Server(states.Running()))


def test_an_unreachable_server_is_ignored(watched) -> None:
    watched(Server(OSError("unreachable"), states.Running()))


@pytest.mark.parametrize(
    ("state", "cancelled"),
    [
        (states.Crashed(), False),
        (states.AwaitingRetry(), False),
        (states.Pending(), False),
        (states.Cancelled(), True),
        (states.Failed(), True),
    ],
)
def test_process_exits_if_its_run_has_ended_or_moved(watched, state, cancelled) -> None:
    calls: list[int] = []
    with pytest.raises(ProcessExit):
        watched(Server(states.Running(), state), calls)
    assert bool(calls) is cancelled, "a retried run still needs its stages"


def test_newer_attempt_ends_the_process(watched) -> None:
    with pytest.raises(ProcessExit):
        watched(Server(states.Running(), run_count=2))


def test_worker_has_time_to_cancel_a_run(watched, monkeypatch) -> None:
    watched(Server(states.Cancelling()))
    monkeypatch.setattr(run_guard, "_CANCEL_SECONDS", -1.0)
    server = Server(states.Cancelling())
    with pytest.raises(ProcessExit):
        watched(server)
    assert [state.type.value for state in server.set] == ["CANCELLED"]
