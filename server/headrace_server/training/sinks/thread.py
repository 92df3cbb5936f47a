"""A sink in a thread of its own: whatever it does there, the event loop goes on, and the process can end.

One call at a time.  A thread cannot be ended from outside: one that hangs is left alone, and nothing more is asked of
it until it has come back.
"""

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future

from headrace_server.training.sinks.sink import Batch, Sink


class SinkHangs(Exception):
    """A call has not come back in time, and may still."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"did not come back within {seconds:g} s")


class SinkThread:
    """One sink, which is made by its first call."""

    def __init__(self, name: str, open_sink: Callable[[], Sink]) -> None:
        self._name = name
        self._open = open_sink
        self._sink: Sink | None = None
        self._orders: queue.SimpleQueue[tuple[Future[None], Callable[[], None]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._latest: Future[None] | None = None

    async def write(self, batch: Batch, seconds: float) -> None:
        """Have a batch written.  Raises SinkHangs, and whatever the sink raises."""
        await self._call(lambda: self._opened().write(batch), seconds)

    async def close(self, seconds: float) -> None:
        """Close the sink, if it was opened, and end the thread, unless it hangs.  Raises as `write` does."""
        if self._thread is None:
            return
        try:
            await self._call(lambda: self._sink.close() if self._sink is not None else None, seconds)
        finally:
            self._orders.put(None)
            self._thread = None

    async def _call(self, work: Callable[[], None], seconds: float) -> None:
        if self._latest is not None and not await _is_done(self._latest, seconds):
            raise SinkHangs(seconds)
        if self._thread is None:
            # A daemon: a process that ends does not wait for a stranger's code.
            self._thread = threading.Thread(target=self._work, name=f"sink-{self._name}", daemon=True)
            self._thread.start()
        self._latest = called = Future[None]()
        self._orders.put((called, work))
        if not await _is_done(called, seconds):
            raise SinkHangs(seconds)
        called.result()

    def _opened(self) -> Sink:
        if self._sink is None:
            self._sink = self._open()
        return self._sink

    def _work(self) -> None:
        while (order := self._orders.get()) is not None:
            called, work = order
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - raised again by whoever waits for it
                called.set_exception(error)
            else:
                called.set_result(None)


async def _is_done(called: "Future[None]", seconds: float) -> bool:
    if not called.done():
        waiting = asyncio.wrap_future(called)
        waiting.add_done_callback(lambda it: it.cancelled() or it.exception())  # `called` tells of it, not this
        await asyncio.wait([waiting], timeout=seconds)
    return called.done()
