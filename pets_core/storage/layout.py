"""Names of files in the store that several packages use."""

from __future__ import annotations

__all__ = ["SETTINGS"]

SETTINGS = "config.yaml"
"""Settings of a run, in its folder."""
