"""Limits of requests: token, size, concurrency and time to send the body."""

from __future__ import annotations

import asyncio
import hmac
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from fastapi import HTTPException
from starlette.responses import JSONResponse

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["BodyLimit", "check_token"]

_BODY_SECONDS = 60.0
_DISCARD_SECONDS = 15.0


def check_token(token: str | None, header: str | None) -> None:
    """Check the header `Authorization: Bearer <token>`.

    Args:
        token: Required token; None or empty: no token is required.
        header: Header of the request.

    Raises:
        HTTPException: 401; the header is missing or has another token.
    """
    if token and not hmac.compare_digest((header or "").encode(), f"Bearer {token}".encode()):
        raise HTTPException(
            401,
            "the header `Authorization: Bearer TOKEN` is missing or has another token",
            {"WWW-Authenticate": "Bearer"},
        )


class BodyLimit:
    """ASGI middleware that rejects large bodies (413) and slow ones (408).

    The rest of a large body is read and discarded, because clients read the answer only after they
    have sent the body.

    Args:
        app: The application.
        max_bytes: Maximum size of a body.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limited = _LimitedBody(receive, self._max_bytes)
        try:
            if _content_length(scope) > self._max_bytes:
                raise _BodyError(413)
            await self._app(scope, limited.receive, send)
        except _BodyError as error:
            if error.status == 413:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_DISCARD_SECONDS):
                        await limited.discard()
            await error.response(self._max_bytes)(scope, receive, send)


class _BodyError(Exception):
    """The body is too large or too slow."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status

    def response(self, max_bytes: int) -> JSONResponse:
        detail = (
            f"the body is larger than {max_bytes / 1e6:g} MB: send fewer or smaller images"
            if self.status == 413
            else f"the body did not arrive within {_BODY_SECONDS:g} s"
        )
        return JSONResponse({"detail": detail}, self.status, {"Connection": "close"})


class _LimitedBody:
    def __init__(self, receive: Receive, max_bytes: int) -> None:
        self._receive, self._max_bytes = receive, max_bytes
        self._num_bytes, self._is_complete = 0, False
        self._deadline: float | None = None

    async def receive(self) -> Message:
        if self._is_complete:
            return await self._receive()
        if self._deadline is None:
            # Not the time at which the request arrived: it may have waited for its turn.
            self._deadline = asyncio.get_running_loop().time() + _BODY_SECONDS
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise _BodyError(408) from None
        self._add(message)
        if self._num_bytes > self._max_bytes:
            raise _BodyError(413)
        return message

    async def discard(self) -> None:
        while not self._is_complete:
            self._add(await self._receive())

    def _add(self, message: Message) -> None:
        self._num_bytes += len(message.get("body", b""))
        self._is_complete = message["type"] != "http.request" or not message.get("more_body")


def _content_length(scope: Scope) -> int:
    headers: dict[bytes, Any] = dict(scope["headers"])
    value = headers.get(b"content-length", b"0")
    return int(value) if value.isdigit() else 0
