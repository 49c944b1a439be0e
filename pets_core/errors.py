"""The errors a user can mend."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ["PetsError", "did_you_mean"]


class PetsError(Exception):
    """A fault in the input or the settings; its message names the remedy.

    The command line prints the message alone, without a traceback.
    """


def did_you_mean(word: str, possibilities: Iterable[str], count: int = 3) -> str:
    """Return " Did you mean a, b?" with the nearest possibilities, or an empty string."""
    near = get_close_matches(word, list(possibilities), n=count, cutoff=0.5)
    return f" Did you mean {', '.join(near)}?" if near else ""
