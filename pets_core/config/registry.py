"""Settings of the registry that mirrors the store."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator

from pets_core.config.base import Settings

__all__ = ["RegistryConfig"]


def _check_uri(uri: str) -> str:
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be the address of an MLflow server, such as http://mlflow:5000")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(
            "must not have a user, password, query or fragment, since the settings are stored: set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        )
    return uri.rstrip("/")


class RegistryConfig(Settings):
    """Registry that evaluated runs and aliases are mirrored to."""

    mlflow_uri: Annotated[
        Annotated[str, AfterValidator(_check_uri)] | None,
        BeforeValidator(lambda value: value or None),
    ] = None
    """Address of an MLflow tracking server. Each evaluated run becomes a run there, and the alias
    gate.alias an alias of a registered model. Empty: no mirror."""
