"""Imports of large packages."""

from __future__ import annotations

import gc
from pkgutil import resolve_name
from typing import Any

__all__ = ["import_object"]


def import_object(name: str) -> Any:
    """Import an object as `pkgutil.resolve_name` does, with the garbage collector paused.

    Collections take up to a quarter of the time in which torch or Prefect's server is imported,
    and free little. What has been imported is excluded from later collections. In a forked child
    these would write to its pages, and so copy them.

    Args:
        name: Name of the object, such as "package.module:function".
    """
    is_enabled = gc.isenabled()
    gc.disable()
    try:
        return resolve_name(name)
    finally:
        gc.freeze()
        if is_enabled:
            gc.enable()
