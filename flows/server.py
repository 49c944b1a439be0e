"""What goes wrong with a Prefect server, said in one clear line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from prefect.settings import get_current_settings

from pets_core.errors import PetsError

__all__ = ["telling_of_the_server"]

_REFUSED = (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN)


@contextmanager
def telling_of_the_server() -> Iterator[None]:
    """Say what is wrong with the configured server, or with what it was shown.

    Raises:
        PetsError: It refused the credentials, could not do what was asked, or was not reached.
    """
    url = get_current_settings().api.url
    try:
        yield
    except httpx.HTTPStatusError as error:
        code = error.response.status_code
        if code in _REFUSED:
            raise PetsError(
                f"PREFECT_API_URL = {url}: the server refuses the credentials (HTTP {code}): set "
                "PREFECT_API_AUTH_STRING to what PREFECT_SERVER_API_AUTH_STRING is there"
            ) from error
        raise PetsError(
            f"PREFECT_API_URL = {url}: the server could not do what was asked (HTTP {code}); its "
            f"log says why (is its database full or away?): {error}"
        ) from error
    except httpx.TransportError as error:
        raise PetsError(
            f"PREFECT_API_URL = {url}: no answer ({error}). Start the server, or mend the address"
        ) from error
