"""The store that the Python interface reads by default."""

from __future__ import annotations

import os

__all__ = ["resolve_store"]


def resolve_store(store: str | None) -> str:
    """Return the given store, that of the variable PETS_STORE, or the default of the setting."""
    from pets_core.config.pipeline import PipelineConfig

    return store or os.environ.get("PETS_STORE") or PipelineConfig().store
