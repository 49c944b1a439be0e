"""Errors that a user can fix, and helpers for error messages."""

from __future__ import annotations

import errno
import os
import re
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches

__all__ = [
    "PetsError",
    "TransferError",
    "did_you_mean",
    "disk_error_reason",
    "explain_full_disk",
    "format_list",
    "is_retryable",
    "iterate_causes",
    "safe_cause",
    "without_queries",
    "wrap_errors",
]

_QUERY = re.compile(r"""(https?://[^\s?]*)\?\S*?(?=['">)\],:;.]*(?:\s|$))""")
"""A web URL with a query. Group 1 is the part before "?"; trailing punctuation is not matched."""

_DISK_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})


class PetsError(Exception):
    """Error in the input or the settings that the user can fix; the message names the remedy.

    The command line prints the message without a traceback. URL queries are removed from it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(without_queries(message))


class TransferError(PetsError):
    """A server is unreachable, or a transfer failed: the same command may succeed later."""


_TRANSIENT_ERRORS = (ConnectionError, TimeoutError)
_PERMANENT_ERRORS = (
    PetsError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    NotImplementedError,
    PermissionError,
    TypeError,
    ValueError,
)


def is_retryable(error: BaseException) -> bool:
    """Whether a retry may succeed after this error.

    False for errors of settings, input or code, and for a disk that is full, over its quota or
    read-only. The causes of the error are checked for disk errors, too.
    """
    if isinstance(error, _TRANSIENT_ERRORS):
        return True
    if isinstance(error, _PERMANENT_ERRORS):
        return False
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return False
    # After a failed write, torch raises RuntimeError and safetensors its own error class.
    return disk_error_reason(error) is None


def iterate_causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and its causes or contexts, newest first."""
    found: BaseException | None = error
    seen: set[int] = set()
    # Raising the cause of an error while handling that error makes a cycle.
    while found is not None and id(found) not in seen:
        yield found
        seen.add(id(found))
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)


def without_queries(text: str) -> str:
    """Return the text with URL queries removed, which may hold signatures."""
    return _QUERY.sub(r"\1", text)


def safe_cause(error: BaseException) -> BaseException | None:
    """Return the error to chain a `PetsError` from, or None if its traceback has a URL query."""
    text = "".join(traceback.format_exception(error))
    return error if without_queries(text) == text else None


@contextmanager
def explain_full_disk(place: str, setting: str) -> Iterator[None]:
    """Raise a `PetsError` if the block fails because a disk is full, over quota or read-only.

    Args:
        place: Path or URL that the block writes to.
        setting: Setting that moves it to another disk: store, cache_dir, --to.
    """
    try:
        yield
    except PetsError:
        raise
    except Exception as error:
        if (reason := disk_error_reason(error)) is None:
            raise
        raise PetsError(
            f"{place}: cannot be written: {reason}. Data stored earlier is intact, and a resumed "
            f"run uses it. Free space there, or set {setting} to another disk"
        ) from safe_cause(error)


def disk_error_reason(error: BaseException) -> str | None:
    """Return the reason of the disk error that caused this error, or None if there is none."""
    for cause in iterate_causes(error):
        for number in _DISK_ERRNOS:
            reason = os.strerror(number)
            if cause.errno == number if isinstance(cause, OSError) else reason in str(cause):
                return reason
    return None


@contextmanager
def wrap_errors(what: str) -> Iterator[None]:
    """Raise any error of the block as a `PetsError` with the message "<what>: <type>: <error>"."""
    try:
        yield
    except PetsError:
        raise
    except Exception as error:  # noqa: BLE001 - store drivers raise any type; it is re-raised
        raise PetsError(f"{what}: {type(error).__name__}: {error}") from safe_cause(error)


def did_you_mean(word: str, possibilities: Iterable[str], count: int = 3) -> str:
    """Return " Did you mean a, b?" with the closest matches, or an empty string."""
    near = get_close_matches(word, list(possibilities), n=count, cutoff=0.5)
    return f" Did you mean {', '.join(near)}?" if near else ""


def format_list(names: Sequence[str], most: int) -> str:
    """Return the first `most` names, comma-separated, and the number of the others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
