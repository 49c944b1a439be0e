"""The errors a user can mend."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

__all__ = ["PetsError", "did_you_mean", "tellable", "telling", "without_queries"]

_QUERY = re.compile(r"""(https?://[^\s?]*)\?\S*?(?=['">)\],:;.]*(?:\s|$))""")
"""Of a URL in a text, with what comes before "?" as its group; marks that end it are the text's."""


class PetsError(Exception):
    """A fault in the input or the settings; its message names the remedy.

    The command line prints the message alone, without a traceback. A URL is told without its query.
    """

    def __init__(self, message: str) -> None:
        super().__init__(without_queries(message))


def without_queries(text: str) -> str:
    """A text whose web URLs end before the "?": what follows is, of a signed one, a secret."""
    return _QUERY.sub(r"\1", text)


def tellable(error: BaseException) -> BaseException | None:
    """The cause to raise a `PetsError` from; None where its traceback would tell a URL's query."""
    text = "".join(traceback.format_exception(error))
    return error if without_queries(text) == text else None


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
