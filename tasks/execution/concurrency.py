"""Stages that work in ranks take turns on a machine, where somebody has limited how many may."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from prefect.client.orchestration import get_client
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectNotFound

__all__ = ["turn_of_this_machine"]

_LEASE_SECONDS = 60
"""Prefect's least: the turn of a process that was killed ends so long after."""


@contextmanager
def turn_of_this_machine(logger: Any) -> Iterator[None]:
    """Hold a slot of the global concurrency limit `pets-ranks@<hostname>`; wait for one if need be.

    Without such a limit nothing is held. Asking first whether there is one costs some milliseconds;
    asking for a slot costs seconds on SQLite, where Prefect's server is busy writing and Prefect's
    client tries again later.

    Args:
        logger: Told what is waited for.
    """
    name = f"pets-ranks@{platform.node()}"
    with get_client(sync_client=True) as client:
        try:
            limit = client.read_global_concurrency_limit_by_name(name)
        except ObjectNotFound:
            limit = None
        except httpx.HTTPError as error:
            logger.warning("no turn is held: the Prefect server cannot be asked (%s)", error)
            limit = None
    if limit is None:
        yield
        return
    if limit.active_slots >= limit.limit:
        logger.info("waiting for a slot of the concurrency limit %s", name)
    # A server that is away for a while ends no training.
    with concurrency(name, lease_duration=_LEASE_SECONDS, raise_on_lease_renewal_failure=False):
        yield
