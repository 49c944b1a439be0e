"""Exit code of commands that use the Hub."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from pets.cli.exit_codes import FAILED, print_error

__all__ = ["exit_on_failed_transfer"]


@contextmanager
def exit_on_failed_transfer() -> Iterator[None]:
    """Exit with 1 instead of 2 if a transfer fails: the arguments are valid."""
    from pets_core.hub.client import HubTransferError

    try:
        yield
    except HubTransferError as error:
        sys.exit(print_error(str(error), FAILED))
