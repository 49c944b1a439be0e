"""Names of files in the store, where more than one room needs them."""

from __future__ import annotations

__all__ = ["SETTINGS"]

SETTINGS = "config.yaml"
"""A run's settings, in its folder."""
