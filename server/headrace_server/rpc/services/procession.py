"""One stream whose answers come in the order of its requests, while the requests are computed together.

At most `window` requests are under way or wait to be taken; the stream is read no further until an answer has been
taken.  So a caller who does not read is waited for, and costs a bounded amount of memory.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, Generic, TypeVar

from headrace_server.errors import Draining

Request = TypeVar("Request")
Answer = TypeVar("Answer")


class Procession(Generic[Request, Answer]):
    """The state of one stream, which owns the tasks of its requests."""

    def __init__(self, answer: Callable[[Request], Coroutine[Any, Any, Answer]], closing: asyncio.Event, window: int):
        """`answer` turns failures into answers."""
        self._answer = answer
        self._closing = closing
        self._free = asyncio.Semaphore(window)
        self._line: asyncio.Queue[asyncio.Task[Answer] | None] = asyncio.Queue()  # at most `window`, and an end
        self._under_way: set[asyncio.Task[Answer]] = set()
        self._failure: Exception | None = None

    async def walk(self, requests: AsyncIterator[Request], write: Callable[[Answer], Awaitable[None]]) -> None:
        """Write the answer to every request, then return.

        Raises Draining when the server closes, and what the stream raises, after what is under way has been answered.
        """
        reader = asyncio.ensure_future(self._read(requests))
        watcher = asyncio.ensure_future(self._watch(reader))
        try:
            while (task := await self._line.get()) is not None:
                await write(await task)
                self._under_way.discard(task)
                self._free.release()
        finally:
            mine: list[asyncio.Task[Any]] = [reader, watcher, *self._under_way]
            for owned in mine:
                owned.cancel()
            await asyncio.gather(*mine, return_exceptions=True)
        if self._failure is not None:
            raise self._failure

    async def _watch(self, reader: "asyncio.Task[None]") -> None:
        await self._closing.wait()
        reader.cancel()

    async def _read(self, requests: AsyncIterator[Request]) -> None:
        try:
            await self._free.acquire()
            async for request in requests:
                task = asyncio.ensure_future(self._answer(request))
                self._under_way.add(task)
                self._line.put_nowait(task)
                await self._free.acquire()
        except asyncio.CancelledError:
            if not self._closing.is_set():
                raise
            self._failure = Draining()
        except Exception as error:  # noqa: BLE001 - it ends the call, after what is under way has been answered
            self._failure = error
        finally:
            self._line.put_nowait(None)
