"""Escaping of text in Markdown."""

from __future__ import annotations

import re

__all__ = ["escape_markdown"]

_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")


def escape_markdown(text: str) -> str:
    """Escape text so that Markdown shows it literally: no markup, links or table cell ends.

    A backslash escapes any ASCII punctuation (CommonMark 0.31, section 2.4).
    """
    return _PUNCTUATION.sub(r"\\\1", " ".join(text.split()))
