"""Batches of items from concurrent requests."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Generic, NamedTuple, TypeVar

__all__ = ["Batcher"]

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Waiting(NamedTuple, Generic[Item, Result]):
    item: Item
    result: asyncio.Future[Result]


class Batcher(Generic[Item, Result]):
    """Runs a function on batches of items, in one thread.

    A batch holds the items that arrived while the function was busy, so an item never waits for
    others when the function is idle, and batches grow with the load.

    Args:
        run: Maps a batch to one result per item, in order.
        max_size: Maximum number of items per batch.
    """

    def __init__(self, run: Callable[[Sequence[Item]], Sequence[Result]], max_size: int) -> None:
        self._run, self._max_size = run, max_size
        self._waiting: deque[_Waiting[Item, Result]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._worker: asyncio.Task[None] | None = None

    async def submit(self, items: Sequence[Item]) -> list[Result]:
        """Return the results of items, which may be computed in different batches.

        Raises:
            Exception: An exception of `run`, which all items of its batch get.
        """
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Result]] = [loop.create_future() for _ in items]
        self._waiting.extend(map(_Waiting, items, futures))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        try:
            return list(await asyncio.gather(*futures))
        finally:
            # Items of a client that closed its connection are not computed.
            for future in futures:
                future.cancel()

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            first = [
                self._waiting.popleft() for _ in range(min(self._max_size, len(self._waiting)))
            ]
            batch = [each for each in first if not each.result.done()]
            if not batch:
                continue
            try:
                items = [each.item for each in batch]
                results = await loop.run_in_executor(self._thread, self._run, items)
            except Exception as error:  # noqa: BLE001 - passed on to the requests
                for each in batch:
                    if not each.result.done():
                        each.result.set_exception(error)
                continue
            for each, result in zip(batch, results, strict=True):
                # The client may have closed its connection during the batch.
                with suppress(asyncio.InvalidStateError):
                    each.result.set_result(result)

    def close(self) -> None:
        """End the thread after the running batch. No items may be submitted any more."""
        self._thread.shutdown(wait=False)
