"""Retries by the class of the error, in this process and in ranks."""

import errno
import importlib
import json
import pickle
import pkgutil
import ssl

import pytest
from prefect import Task
from prefect.states import Failed
from pydantic import ValidationError

import tasks
from pets_core.config.train import TrainConfig
from pets_core.errors import PetsError, is_retryable
from pets_core.records.training import TrainResult
from pets_core.runtime import agent, worker
from pets_core.runtime.failures import (
    RankFailure,
    WorkerError,
    read_failures,
    to_exception,
    to_failure,
)
from pets_core.runtime.fork_server import forked
from pets_core.runtime.launcher import launch, worker_environment
from pets_core.runtime.request import WorkRequest
from tasks.execution.retries import should_retry


def raised_from(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def raised_while_handling(error: Exception, other: Exception) -> Exception:
    error.__context__ = other
    return error


def invalid_settings() -> ValidationError:
    try:
        TrainConfig(epochs=-1)
    except ValidationError as error:
        return error


def in_a_cycle(error: Exception) -> Exception:
    """Return the error as after `raise error.__cause__` in its own handler."""
    error.__context__ = raised_from(RuntimeError("x"), error)
    return error


FULL = OSError(errno.ENOSPC, "No space left on device")
PERMANENT = [
    PetsError("model.backbone = x: no such model"),
    ValueError("x"),
    TypeError("x"),
    KeyError("x"),
    IndexError("x"),
    AttributeError("x"),
    AssertionError("x"),
    NotImplementedError("x"),
    ImportError("x"),
    ModuleNotFoundError("x"),
    NameError("x"),
    ZeroDivisionError("x"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "x"),
    json.JSONDecodeError("x", "", 0),
    invalid_settings(),
    ssl.SSLCertVerificationError(1, "self-signed certificate"),
    FULL,
    OSError(errno.EDQUOT, "x"),
    OSError(errno.EROFS, "x"),
    OSError(errno.EACCES, "x"),
    OSError(errno.EPERM, "x"),
    OSError(errno.ENAMETOOLONG, "x"),
    PermissionError("the store refused"),
    # torch.save and safetensors on a full disk.
    raised_while_handling(RuntimeError("unexpected pos 576 vs 534"), FULL),
    raised_from(RuntimeError("the checkpoint was not written"), FULL),
    Exception("I/O error: No space left on device (os error 28)"),
]
TRANSIENT = [
    ConnectionError("x"),
    ConnectionResetError(errno.ECONNRESET, "x"),
    BrokenPipeError(errno.EPIPE, "x"),
    TimeoutError("x"),
    OSError(errno.EIO, "x"),
    OSError(errno.ESTALE, "x"),
    OSError(errno.EMFILE, "x"),
    OSError("Please reduce your request rate"),
    FileNotFoundError(errno.ENOENT, "x"),
    EOFError("x"),
    MemoryError("x"),
    RuntimeError("CUDA out of memory"),
    # The errno of an SSL error is OpenSSL's; here it equals EPERM.
    ssl.SSLError(1, "decryption failed or bad record mac"),
    raised_while_handling(ConnectionError("x"), PermissionError("x")),
    in_a_cycle(RuntimeError("x")),
]


def error_id(error: Exception) -> str:
    return repr(error)[:60]


@pytest.mark.parametrize("error", PERMANENT, ids=error_id)
def test_permanent_errors_are_not_retried(error):
    assert not is_retryable(error)
    assert not should_retry(None, None, Failed(data=error))


@pytest.mark.parametrize("error", TRANSIENT, ids=error_id)
def test_transient_errors_are_retried(error):
    assert is_retryable(error)
    assert should_retry(None, None, Failed(data=error))


@pytest.mark.parametrize("error", [*PERMANENT, *TRANSIENT], ids=error_id)
def test_rank_failure_is_retried_like_its_error(tmp_path, error):
    failure = to_failure(error, rank=1)
    recorded = RankFailure.model_validate_json(failure.model_dump_json())
    # Dask and Ray return errors by pickle.
    unpickled = pickle.loads(pickle.dumps(to_exception([recorded])))
    assert should_retry(None, None, Failed(data=unpickled)) == is_retryable(error)


def test_failure_caused_by_another_rank_is_retried():
    failure = to_failure(ValueError("connection closed by peer"), rank=1, is_cut_off=True)
    assert should_retry(None, None, Failed(data=to_exception([failure])))


def test_failure_recorded_by_an_earlier_version_is_retried():
    recorded = RankFailure.model_validate_json('{"rank": 0, "message": "x", "kind": "failed"}')
    assert should_retry(None, None, Failed(data=to_exception([recorded])))


def test_a_rank_records_whether_its_error_is_retryable(small_config, tmp_path, monkeypatch):
    """Run a real stage: a training without a data set fails an assertion."""
    request = WorkRequest(stage="train", config=small_config, run_url=str(tmp_path / "run"))
    with pytest.raises(WorkerError, match="rank 0 failed: ") as caught:
        launch(request, TrainResult)
    assert not should_retry(None, None, Failed(data=caught.value))

    def reset(*_) -> None:
        raise ConnectionResetError("the store went away")

    monkeypatch.setattr(worker, "run", reset)
    # The real function changes warnings and logging of this process permanently.
    monkeypatch.setattr(worker, "forward_warnings", lambda: None)
    path = tmp_path / "request.json"
    path.write_text(request.model_dump_json())
    assert worker.work(path) == 1
    (failure,) = read_failures(tmp_path)
    assert failure.is_retryable


def test_an_error_of_the_launcher_is_recorded(tmp_path):
    path = tmp_path / "request.json"
    path.write_text("{}")
    assert agent.run_stage([str(path), "0"]) == 1
    (failure,) = read_failures(tmp_path)
    assert (failure.rank, failure.kind, failure.is_retryable) == (None, "failed", False)
    error = to_exception([failure])
    assert "ValidationError" in str(error)
    assert not should_retry(None, None, Failed(data=error))


@pytest.mark.slow
def test_an_error_of_a_forked_launcher_is_recorded(tmp_path):
    path = tmp_path / "request.json"
    path.write_text("{}")
    with forked("pets_core.runtime.agent:run_stage", worker_environment(), [str(path), "0"]) as job:
        assert job.wait(60) == 1
    assert not read_failures(tmp_path)[0].is_retryable


def every_task() -> list[Task]:
    modules = [
        importlib.import_module(module.name)
        for module in pkgutil.walk_packages(tasks.__path__, "tasks.")
    ]
    return [value for module in modules for value in vars(module).values() if _is_task(value)]


def _is_task(value: object) -> bool:
    return isinstance(value, Task)


def test_every_retried_task_checks_its_error():
    retried = [task for task in every_task() if task.retries]
    assert len(retried) > 10
    assert {task.name for task in retried if task.retry_condition_fn is not should_retry} == set()
