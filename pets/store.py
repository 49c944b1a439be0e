"""Store and cache of the Python interface by default."""

from __future__ import annotations

import os

__all__ = ["resolve_cache_dir", "resolve_store"]


def resolve_store(store: str | None) -> str:
    """Return the given store, that of the variable PETS_STORE, or the default of the setting."""
    from pets_core.config.pipeline import PipelineConfig

    return store or os.environ.get("PETS_STORE") or PipelineConfig().store


def resolve_cache_dir() -> str:
    """Return the cache of the variable PETS_CACHE_DIR, or the default of the setting."""
    from pets_core.config.pipeline import PipelineConfig

    return os.environ.get("PETS_CACHE_DIR") or PipelineConfig().cache_dir
