"""Retry policy of tasks."""

from __future__ import annotations

from typing import Any

from prefect.cache_policies import NO_CACHE

from pets_core.errors import is_retryable
from pets_core.runtime.failures import WorkerError

__all__ = ["SHORT_TASK", "should_retry"]


def should_retry(_task: object, _run: object, state: Any) -> bool:
    """Whether Prefect should retry a failed task; a `retry_condition_fn`."""
    error = state.result(raise_on_failure=False)
    if isinstance(error, WorkerError):
        return error.is_retryable
    return not isinstance(error, BaseException) or is_retryable(error)


SHORT_TASK: dict[str, Any] = {
    "cache_policy": NO_CACHE,
    "retries": 2,
    "retry_delay_seconds": 5,
    "retry_condition_fn": should_retry,
}
"""Retry policy of tasks that take seconds or read a whole data set."""
