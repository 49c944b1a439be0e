"""Prefect's task retries for errors that are and are not retryable."""

import errno
from collections import Counter

import pytest
from prefect import flow, task

from pets_core.errors import PetsError
from pets_core.runtime.failures import RankFailure, to_exception
from tasks.stages import RESUMABLE_TASK

pytestmark = pytest.mark.usefixtures("prefect_server")

ATTEMPTS = {
    PetsError("model.backbone = x: no such model"): 1,
    ValueError("x"): 1,
    TypeError("x"): 1,
    OSError(errno.ENOSPC, "No space left on device"): 1,
    to_exception([RankFailure(rank=0, message="x", kind="failed", is_retryable=False)]): 1,
    to_exception([RankFailure(rank=0, message="x", kind="failed")]): 4,
    ConnectionResetError("the store went away"): 4,
}
ERRORS = list(ATTEMPTS)
attempts: Counter[int] = Counter()


@task(**RESUMABLE_TASK | {"retry_delay_seconds": 0})
def fail(number: int) -> None:
    attempts[number] += 1
    raise ERRORS[number]


@flow
def fail_each() -> None:
    for number in range(len(ERRORS)):
        assert fail(number, return_state=True).is_failed()


def test_number_of_attempts_depends_on_the_error():
    fail_each()
    assert [attempts[number] for number in range(len(ERRORS))] == list(ATTEMPTS.values())
