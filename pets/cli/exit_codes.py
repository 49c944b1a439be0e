"""Exit codes of the command line, and its errors."""

from __future__ import annotations

import sys

from pets_core.errors import without_queries

__all__ = ["FAILED", "INTERRUPTED", "INVALID", "REJECTED", "TERMINATED", "print_error"]

FAILED = 1
"""The command failed."""
INVALID = 2
"""An argument, a setting or the input is invalid."""
REJECTED = 3
"""The model did not pass the gate, with `gate.promote`."""
INTERRUPTED = 130
"""Stopped by Ctrl-C."""
TERMINATED = 143
"""Stopped by SIGTERM."""


def print_error(message: str, code: int = INVALID) -> int:
    """Print an error without URL queries to standard error, and return its exit code."""
    first, *rest = without_queries(message).splitlines()
    print(f"error: {first}", *(f"       {line}" for line in rest), sep="\n", file=sys.stderr)
    return code
