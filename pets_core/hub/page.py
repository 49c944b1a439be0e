"""README.md of a repository: YAML metadata, then text."""

from __future__ import annotations

from typing import Any

import yaml

__all__ = ["README", "format_page"]

README = "README.md"
"""File that the Hub shows as the page of a repository."""


def format_page(metadata: dict[str, Any], text: str) -> str:
    """Return the page."""
    return f"---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)}---\n{text}"
