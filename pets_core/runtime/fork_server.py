"""Fork server: a process that imports torch once and forks a child for each stage.

Importing torch, timm and accelerate takes seconds of CPU. A fork server (`python -m
pets_core.runtime.fork_server MODULE:FUNCTION`) imports them once, while the flow does other work.
Each stage then starts in a child within milliseconds. The child is isolated like a new process: a
crash ends that child alone, and its memory and its GPU context are released when it exits. The
standard library's `multiprocessing.forkserver` works alike, but its children import the caller's
main module again, and it accepts neither an environment nor an idle timeout.

Only Linux forks. On other systems the system libraries do not survive a fork, and a server runs
one job and exits.
"""

from __future__ import annotations

import atexit
import contextlib
import math
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing.connection import wait as wait_until_readable
from pathlib import Path
from typing import IO, Any, NoReturn

from pets_core.runtime.importing import import_object
from pets_core.runtime.signals import SHUTDOWN_SECONDS, exit_with, fork, hard_exit

__all__ = ["ForkServer", "Job", "forked", "prestart", "stop_process"]

_IDLE_SECONDS = 60.0
"""Idle time after which a server exits; the next stage starts another."""
_INT = struct.Struct("!i")
_MAX_MESSAGE = 65_536
_POLL_SECONDS = 0.5


class Job:
    """A child of a fork server, with the interface of `subprocess.Popen`.

    Attributes:
        pid: Process id of the child.
        stdout: Standard output and error of the child.
        returncode: Its exit code, negative for a signal; None while it runs.
        is_orphan: Whether the server exited first; the child received SIGTERM and may still run.
    """

    def __init__(
        self,
        server: subprocess.Popen[bytes],
        connection: socket.socket,
        pid: int,
        stdout: IO[str],
    ) -> None:
        self._server = server
        self._connection = connection
        self.pid = pid
        self.stdout = stdout
        self.returncode: int | None = None
        self.is_orphan = False

    def poll(self) -> int | None:
        """Return the exit code, or None while the child runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        """Wait until the child exits and return its exit code.

        Raises:
            subprocess.TimeoutExpired: The child still runs after `timeout` seconds.
        """
        if self.returncode is None:
            if not _wait_for_message(self._connection, timeout):
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
            code = _receive(self._connection)
            if code is None:
                code = self._server.wait()
                self.is_orphan = self.pid != self._server.pid
            self.returncode = code
        return self.returncode

    def terminate(self) -> None:
        """Send SIGTERM to the child."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL to the child."""
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        if self.poll() is None or self.is_orphan:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


def stop_process(process: subprocess.Popen[Any] | Job, seconds: float) -> None:
    """Stop a process with SIGTERM, after `seconds` with SIGKILL, and wait for it."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class ForkServer:
    """Client of a fork server; the server exits when the client is closed.

    Args:
        work: MODULE:FUNCTION, called with the arguments of a job in its child.
        environment: Environment variables of the server and its children.
    """

    def __init__(self, work: str, environment: dict[str, str]) -> None:
        self._key = (work, environment, Path.cwd())
        self._job: Job | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        self._connection, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-m", "pets_core.runtime.fork_server", work],
                stdin=theirs.fileno(),
                stdout=self._log,
                stderr=self._log,
                env=environment,
                # Ctrl-C in a terminal then reaches the caller only. The caller stops the child with
                # SIGTERM, as a cancelled run does, and the ranks write a checkpoint.
                process_group=0,
            )

    def is_reusable_for(self, work: str, environment: dict[str, str]) -> bool:
        """Whether the server is idle and has this function, environment and working folder."""
        return self.is_idle and self._key == (work, environment, Path.cwd())

    @property
    def is_idle(self) -> bool:
        """Whether the server runs and has no job."""
        done = self._job is None or self._job.poll() is not None
        return done and self._process.poll() is None

    def start(self, arguments: Sequence[str]) -> Job:
        """Start a child; if that fails, close the server.

        Raises:
            ConnectionError: The server has exited; the message contains its output.
        """
        read, write = os.pipe()
        stdout = os.fdopen(read, encoding="utf-8", errors="replace")
        try:
            try:
                # An exited server is detected below.
                with contextlib.suppress(ConnectionError):
                    socket.send_fds(self._connection, ["\0".join(arguments).encode()], [write])
            finally:
                os.close(write)
            _wait_for_message(self._connection, None)
            pid = _receive(self._connection)
            if pid is None:
                code = self._process.wait()
                raise ConnectionError(f"exit code {code}: {self._last_output()}")
        except BaseException:
            stdout.close()
            self.close()
            raise
        self._job = Job(self._process, self._connection, pid, stdout)
        return self._job

    def close(self) -> None:
        """Stop the server, even during its imports; a running child receives SIGTERM."""
        self._connection.close()
        stop_process(self._process, 2 * SHUTDOWN_SECONDS)
        self._log.close()

    def _last_output(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")[-5000:].strip()


def _wait_for_message(connection: socket.socket, timeout: float | None) -> bool:
    """Wait up to `timeout` seconds for a message; return whether there is one.

    Waits in short intervals, so that a cancellation raised in this thread is delivered.
    """
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    while True:
        left = max(deadline - time.monotonic(), 0.0)
        if wait_until_readable([connection], min(left, _POLL_SECONDS)):
            return True
        if left <= _POLL_SECONDS:
            return False


def _receive(connection: socket.socket) -> int | None:
    """Return the next number that the server sends, or None once it has exited."""
    try:
        reply = connection.recv(_INT.size)
    except ConnectionError:
        return None
    return int(_INT.unpack(reply)[0]) if reply else None


_idle_servers: list[ForkServer] = []
_LOCK = threading.Lock()


@contextlib.contextmanager
def forked(work: str, environment: dict[str, str], arguments: Sequence[str]) -> Iterator[Job]:
    """Start a child of the idle server, if its environment matches, or of a new server.

    The server is kept for the next call until it has been idle for a minute or this process exits.

    Args:
        work: MODULE:FUNCTION, which the child calls.
        environment: Environment variables of the server and its children.
        arguments: Arguments of the child.

    Raises:
        ConnectionError: The server did not start; the message contains its output.
    """
    server, job = _start(work, environment, arguments)
    try:
        yield job
    finally:
        _keep(server)


def _start(
    work: str, environment: dict[str, str], arguments: Sequence[str]
) -> tuple[ForkServer, Job]:
    with _LOCK:
        kept = _idle_servers.pop() if _idle_servers else None
    if kept and kept.is_reusable_for(work, environment):
        # The server may exit at this moment.
        with contextlib.suppress(ConnectionError):
            return kept, kept.start(arguments)
    elif kept:
        kept.close()
    server = ForkServer(work, environment)
    return server, server.start(arguments)


def prestart(work: str, environment: dict[str, str]) -> None:
    """Start a server now, so that its imports run in parallel with other work."""
    _keep(ForkServer(work, environment))


def _keep(server: ForkServer) -> None:
    with _LOCK:
        if server.is_idle and not _idle_servers:
            _idle_servers.append(server)
            return
    server.close()


@atexit.register
def _close_all() -> None:
    while _idle_servers:
        _idle_servers.pop().close()


# A forked child must not use its parent's servers.
os.register_at_fork(after_in_child=_idle_servers.clear)


def _serve(work: Callable[[Sequence[str]], int]) -> NoReturn:
    """Serve jobs from standard input: run `work` in a child for each; never return.

    Args:
        work: Called with the arguments of a job; returns the exit code of the child.
    """
    connection = socket.socket(fileno=os.dup(sys.stdin.fileno()))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, sys.stdin.fileno())
    os.close(null)
    while select.select([connection], [], [], _IDLE_SECONDS)[0]:
        message, output, _, _ = socket.recv_fds(connection, _MAX_MESSAGE, 1)
        if not message:
            break
        job = partial(_run_job, work, message.decode().split("\0"), output[0])
        if sys.platform != "linux":
            connection.send(_INT.pack(os.getpid()))
            threading.Thread(target=_end_with_caller, args=(connection,), daemon=True).start()
            exit_with(job)
        _fork_job(connection, job, output[0])
    hard_exit(0)


def _fork_job(connection: socket.socket, job: Callable[[], int], output: int) -> None:
    """Run a job in a child until it ends; exit when the caller exits."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(write)

    def child() -> int:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for descriptor in (connection.detach(), read, write):
            os.close(descriptor)
        return job()

    pid = fork(child, signal.SIGTERM)
    os.close(output)
    connection.send(_INT.pack(pid))
    ended = 0
    while not ended:
        readable, _, _ = select.select([connection.fileno(), read], [], [])
        if connection.fileno() in readable:
            # The caller sends nothing while a job runs, so it has exited. The child receives
            # SIGTERM when this process exits.
            hard_exit(1)
        os.read(read, 1)
        ended, status = os.waitpid(pid, os.WNOHANG)
    signal.set_wakeup_fd(-1)
    os.close(read)
    os.close(write)
    connection.send(_INT.pack(os.waitstatus_to_exitcode(status)))


def _run_job(work: Callable[[Sequence[str]], int], arguments: Sequence[str], output: int) -> int:
    for stream in (sys.stdout, sys.stderr):
        os.dup2(output, stream.fileno())
    os.close(output)
    return work(arguments)


def _end_with_caller(connection: socket.socket) -> None:
    """Stop a job that runs in the server itself when the caller exits."""
    select.select([connection], [], [])
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(SHUTDOWN_SECONDS)
    hard_exit(1)


if __name__ == "__main__":
    _serve(import_object(sys.argv[1]))
