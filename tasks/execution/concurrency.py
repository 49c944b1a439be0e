"""Concurrency limit for the stages that run worker ranks on one machine."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from prefect.client.orchestration import get_client
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectNotFound

__all__ = ["machine_slot"]

_LEASE_SECONDS = 60
"""Prefect's minimum. The slot of a killed process is released after this time."""


@contextmanager
def machine_slot(logger: Any) -> Iterator[None]:
    """Hold a slot of the global concurrency limit `pets-ranks@<hostname>` during the block.

    Waits for a free slot. Does nothing if the limit does not exist: the check takes milliseconds,
    whereas requesting a slot takes seconds on SQLite, where the server is busy writing and the
    client retries later.

    Args:
        logger: Logs the wait, and a server that cannot be reached.
    """
    name = f"pets-ranks@{platform.node()}"
    with get_client(sync_client=True) as client:
        try:
            limit = client.read_global_concurrency_limit_by_name(name)
        except ObjectNotFound:
            limit = None
        except httpx.HTTPError as error:
            logger.warning("Cannot read concurrency limit %s (%s); running without", name, error)
            limit = None
    if limit is None:
        yield
        return
    if limit.active_slots >= limit.limit:
        logger.info("Concurrency limit %s is full, waiting for a slot", name)
    # A training continues while the server is unreachable.
    with concurrency(name, lease_duration=_LEASE_SECONDS, raise_on_lease_renewal_failure=False):
        yield
