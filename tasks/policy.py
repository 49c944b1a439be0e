"""Which failures are worth another attempt."""

from __future__ import annotations

from typing import Any

from pets_core.errors import is_retryable
from pets_core.failures import WorkerError

__all__ = ["may_pass"]


def may_pass(_task: object, _run: object, state: Any) -> bool:
    """Whether another attempt of a failed task may succeed."""
    error = state.result(raise_on_failure=False)
    if isinstance(error, WorkerError):
        return error.is_retryable
    return not isinstance(error, BaseException) or is_retryable(error)
