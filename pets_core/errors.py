"""The errors a user can mend."""

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
    "did_you_mean",
    "disk_fault",
    "explain_full_disk",
    "is_retryable",
    "listed",
    "tellable",
    "telling",
    "without_queries",
]

_QUERY = re.compile(r"""(https?://[^\s?]*)\?\S*?(?=['">)\],:;.]*(?:\s|$))""")
"""Of a URL in a text, with what comes before "?" as its group; marks that end it are the text's."""

_DISK_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})


class PetsError(Exception):
    """A fault in the input or the settings; its message names the remedy.

    The command line prints the message alone, without a traceback. A URL is told without its query.
    """

    def __init__(self, message: str) -> None:
        super().__init__(without_queries(message))


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
    """Whether another attempt may succeed where this error was raised.

    False for faults of settings and input, for faults of the code, and for a disk that is full,
    over its quota or read-only, whether the error says so itself or one that it was raised from.
    """
    if isinstance(error, _TRANSIENT_ERRORS):
        return True
    if isinstance(error, _PERMANENT_ERRORS):
        return False
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return False
    # torch raises RuntimeError from a failed write, and safetensors has an error of its own.
    return disk_fault(error) is None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those it was raised from or in the handling of, the newest first."""
    found: BaseException | None = error
    seen: set[int] = set()
    # Raising the cause of an error while that error is handled makes a cycle.
    while found is not None and id(found) not in seen:
        yield found
        seen.add(id(found))
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)


def without_queries(text: str) -> str:
    """A text whose web URLs end before the "?": what follows is, of a signed one, a secret."""
    return _QUERY.sub(r"\1", text)


def tellable(error: BaseException) -> BaseException | None:
    """The cause to raise a `PetsError` from; None where its traceback would tell a URL's query."""
    text = "".join(traceback.format_exception(error))
    return error if without_queries(text) == text else None


@contextmanager
def explain_full_disk(place: str, setting: str) -> Iterator[None]:
    """Raise a `PetsError` where the block fails because the disk of `place` is full or read-only.

    Args:
        place: What is written: a path or URL.
        setting: What to set to another place: store, cache_dir, --to.
    """
    try:
        yield
    except PetsError:
        raise
    except Exception as error:
        if (reason := disk_fault(error)) is None:
            raise
        raise PetsError(
            f"{place}: cannot be written: {reason}. What was stored before is unharmed, and a run "
            f"is resumed from it. Make room there, or set {setting} to another disk"
        ) from tellable(error)


def disk_fault(error: BaseException) -> str | None:
    """Return why a disk took no more, if that caused an error, and None otherwise."""
    for cause in _chain(error):
        for number in _DISK_ERRNOS:
            reason = os.strerror(number)
            if cause.errno == number if isinstance(cause, OSError) else reason in str(cause):
                return reason
    return None


@contextmanager
def telling(what: str) -> Iterator[None]:
    """Raise any fault in the block as a `PetsError` that says `what` failed, and how."""
    try:
        yield
    except PetsError:
        raise
    except Exception as error:  # noqa: BLE001 - stores' drivers raise anything; none is swallowed
        raise PetsError(f"{what}: {type(error).__name__}: {error}") from tellable(error)


def did_you_mean(word: str, possibilities: Iterable[str], count: int = 3) -> str:
    """Return " Did you mean a, b?" with the nearest possibilities, or an empty string."""
    near = get_close_matches(word, list(possibilities), n=count, cutoff=0.5)
    return f" Did you mean {', '.join(near)}?" if near else ""


def listed(names: Sequence[str], most: int) -> str:
    """Return the first `most` names, commas between them, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
