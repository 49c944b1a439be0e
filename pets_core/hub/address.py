"""Addresses of repositories on the Hub: hf://org/name."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from pets_core import storage
from pets_core.errors import PetsError

__all__ = ["HubAddress", "is_hub_address", "parse_address"]

_SCHEME = "hf://"
_DATASETS = "datasets/"
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_ADDRESS = re.compile(rf"{_SCHEME}({_DATASETS})?({_NAME}/{_NAME})(?:@([A-Za-z0-9][\w./-]*))?")


class HubAddress(NamedTuple):
    """A repository on the Hub.

    Attributes:
        kind: Type of the repository.
        repo_id: Organisation or user, and name: org/name.
        revision: Branch, tag or commit; None: the default branch.
    """

    kind: Literal["model", "dataset"]
    repo_id: str
    revision: str | None = None

    def __str__(self) -> str:
        prefix = _DATASETS if self.kind == "dataset" else ""
        return f"{_SCHEME}{prefix}{self.repo_id}{f'@{self.revision}' if self.revision else ''}"


def is_hub_address(text: str) -> bool:
    """Return whether a text is meant as an address on the Hub."""
    return text.startswith(_SCHEME)


def parse_address(text: str) -> HubAddress:
    """Return the address written as hf://org/name, hf://datasets/org/name or hf://...@revision.

    Raises:
        PetsError: The text is no such address.
    """
    found = _ADDRESS.fullmatch(text)
    if not found:
        shown = storage.strip_password(text.partition("?")[0])
        raise PetsError(
            f"{shown} is not an address on the Hub: use hf://org/name for a "
            "model, hf://datasets/org/name for a data set"
        )
    kind: Literal["model", "dataset"] = "dataset" if found[1] else "model"
    return HubAddress(kind, found[2], found[3])
