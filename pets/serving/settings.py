"""Settings of the model server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Device", "ServeSettings"]

Device = Literal["auto", "cpu"]


@dataclass(frozen=True)
class ServeSettings:
    """Settings of the server.

    Attributes:
        model: Model folder, ONNX file, alias or run.
        store: Store of aliases and runs; None: PETS_STORE or `pets-store`.
        device: Device of the model.
        max_mb: Maximum size of a request, megabytes.
        max_images: Maximum number of images per request.
        poll_seconds: Time between two looks at the alias.
        token: Token that requests must have; empty: none.
    """

    model: str
    store: str | None = None
    device: Device = "auto"
    max_mb: float = 32.0
    max_images: int = 64
    poll_seconds: float = 10.0
    token: str = ""
