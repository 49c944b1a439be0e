"""Name, tags and notes of a run."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from pets_core.config.base import NAME_PATTERN, Settings

__all__ = ["LATEST", "RunConfig"]

LATEST = "latest"
"""Stands for the newest run where a run is given."""


def _check_name(name: str) -> str:
    if name == LATEST or "/" in name or not name.strip() or not name.isprintable():
        raise ValueError(
            f"{name!r} cannot name a run: use printable characters other than /, and not {LATEST}"
        )
    return name


class RunConfig(Settings):
    """Name, tags and notes of the run."""

    name: Annotated[str, Field(max_length=200), AfterValidator(_check_name)] | None = None
    """Name of the run in `pets runs` and the Prefect UI. Empty: data set, backbone and photo
    size."""
    tags: tuple[Annotated[str, Field(pattern=NAME_PATTERN, max_length=100)], ...] = ()
    """Tags of the run and its flow run."""
    notes: Annotated[str, Field(max_length=10_000)] = ""
    """Free text, which `pets runs show` prints."""
