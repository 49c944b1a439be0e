"""Which failures are worth another attempt."""

from __future__ import annotations

from typing import Any

from pets_core.errors import PetsError

__all__ = ["may_pass"]


def may_pass(_task: object, _run: object, state: Any) -> bool:
    """Whether another attempt may end better: not where the user has to mend something."""
    return not isinstance(state.result(raise_on_failure=False), PetsError)
