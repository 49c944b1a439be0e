"""Limits of requests: token, size, memory, time to send the body, and open connection."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import HTTPException
from starlette.responses import JSONResponse

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["BodyLimit", "ByteBudget", "check_token", "content_length", "until_disconnect"]

Result = TypeVar("Result")

_BODY_SECONDS = 60.0
_DISCARD_SECONDS = 15.0


def check_token(token: str, header: str | None) -> None:
    """Check the header `Authorization: Bearer <token>`.

    Args:
        token: Required token; empty: no token is required.
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


class ByteBudget:
    """Bounds the bytes of all bodies in memory; further requests wait.

    Args:
        size: Maximum number of bytes.
    """

    def __init__(self, size: int) -> None:
        self._size = self._free = size
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def hold(self, num_bytes: int) -> AsyncIterator[None]:
        """Reserve bytes until the end of the block."""
        held = min(num_bytes, self._size)
        async with self._changed:
            await self._changed.wait_for(lambda: self._free >= held)
            self._free -= held
        try:
            yield
        finally:
            self._free += held
            async with self._changed:
                self._changed.notify_all()


async def until_disconnect(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Return the result of `work`, or cancel it when the client closes its connection.

    Args:
        request: The request, whose body is read.
        work: Work for the answer.

    Raises:
        HTTPException: 499; the client has closed its connection.
    """
    task = asyncio.create_task(work)
    # After the body, the only message is the end of the connection.
    end = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({task, end}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise HTTPException(499, "the client has closed the connection")
        return task.result()
    finally:
        task.cancel()
        end.cancel()


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
            if content_length(scope) > self._max_bytes:
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


def content_length(scope: Scope, default: int = 0) -> int:
    """Return the size of the body, or the default if the client does not state it."""
    headers: dict[bytes, bytes] = dict(scope["headers"])
    value = headers.get(b"content-length", b"")
    return int(value) if value.isdigit() else default
