"""Text inside markdown."""

from __future__ import annotations

import re

__all__ = ["literal"]

_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")


def literal(text: str) -> str:
    """Text as markdown shows it literally: no markup, no link, no table cell's end.

    Any ASCII punctuation may have a backslash before it (CommonMark 0.31, section 2.4).
    """
    return _PUNCTUATION.sub(r"\\\1", " ".join(text.split()))
