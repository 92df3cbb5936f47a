"""Many predictions over one stream: a window of requests under way, sent again when the connection breaks.

Knows no model and no array: it is given what makes a request of an input.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable
from time import perf_counter
from typing import Generic, TypeAlias, TypeVar

import grpc

from headrace.ending import Ending, Wish
from headrace.errors import HeadraceError, Unavailable
from headrace.inference.v1.inference_service_pb2 import PredictRequest, PredictStreamRequest, PredictStreamResponse
from headrace.prediction import ModelSignature, StreamedPrediction, read_prediction
from headrace.status import from_call, from_status
from headrace.wire import Wire

ItemT = TypeVar("ItemT")
_Call: TypeAlias = "grpc.aio.StreamStreamCall[PredictStreamRequest, PredictStreamResponse]"


class PredictionStream(Generic[ItemT]):
    """One run over many inputs.

    A taker, which lives as long as the run, turns inputs into pending requests; a writer, which lives as long as one
    connection, sends them; the caller's own task reads answers.  A request is pending until its answer is there.
    """

    def __init__(
        self, wire: Wire, make_request: Callable[[ItemT], PredictRequest], signature: ModelSignature, window: int
    ) -> None:
        self._wire = wire
        self._make_request = make_request
        self._signature = signature
        self._permits = asyncio.Semaphore(window)
        self._pending: dict[str, PredictStreamRequest] = {}  # bounded by the permits
        self._sent_at: dict[str, float] = {}
        self._outbox: asyncio.Queue[str | None] = asyncio.Queue()  # ids of pending requests; None ends it
        self._has_taken_all = False

    async def answers(self, inputs: Iterable[ItemT] | AsyncIterable[ItemT]) -> AsyncGenerator[StreamedPrediction, None]:
        """Yield an answer for every input, as they finish.

        Raises what ends the stream for good.  What `inputs` raises, and InvalidTensor for an input that does not fit
        the model, is raised after the answers to all inputs before it.
        """
        taker = asyncio.create_task(self._take(inputs))
        failures = 0
        wish = Wish()
        try:
            while True:
                try:
                    async for answer in self._converse():
                        failures = 0
                        yield answer
                    break
                except HeadraceError as error:
                    wish.check()
                    failures += 1
                    wait = self._wire.retry.wait_before_resume(failures, error)
                    if wait is None or failures >= self._wire.retry.attempts:
                        raise
                await self._wire.retry.clock.sleep(wait)
            await taker  # it has ended; raises what stopped it
        finally:
            await _end(taker)

    async def _take(self, inputs: Iterable[ItemT] | AsyncIterable[ItemT]) -> None:
        source, index = aiter(_as_async(inputs)), 0
        try:
            while True:
                await self._permits.acquire()  # first, so that no input is taken before there is room for it
                try:
                    item = await anext(source)
                except StopAsyncIteration:
                    return
                request_id = str(index)
                self._pending[request_id] = PredictStreamRequest(id=request_id, request=self._make_request(item))
                self._outbox.put_nowait(request_id)
                index += 1
        finally:
            self._has_taken_all = True
            self._outbox.put_nowait(None)

    async def _converse(self) -> AsyncGenerator[StreamedPrediction, None]:
        """Yield answers over one connection until every input has one; raises what broke the connection."""
        self._outbox = asyncio.Queue()
        for request_id in (*self._pending, *([None] if self._has_taken_all else [])):
            self._outbox.put_nowait(request_id)
        call = self._wire.inference.PredictStream()
        ending = Ending(call)
        writer = asyncio.create_task(self._write(call, self._outbox))
        try:
            async for message in call:
                if (answer := self._receive(message)) is not None:
                    yield answer
        except grpc.aio.AioRpcError as error:
            raise from_call(await ending.true_error(error)) from error
        finally:
            await _end(writer)
            call.cancel()
        if self._pending or not self._has_taken_all:
            raise Unavailable("the stream ended before every input had its answer")

    async def _write(self, call: _Call, outbox: asyncio.Queue[str | None]) -> None:
        try:
            while (request_id := await outbox.get()) is not None:
                self._sent_at[request_id] = perf_counter()
                await call.write(self._pending[request_id])
            await call.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return  # the reader learns why

    def _receive(self, message: PredictStreamResponse) -> StreamedPrediction | None:
        if self._pending.pop(message.id, None) is None:
            return None
        total_seconds = perf_counter() - self._sent_at.pop(message.id)
        self._permits.release()
        index = int(message.id)
        if message.HasField("error"):
            return StreamedPrediction(index, None, from_status(message.error))
        return StreamedPrediction(index, read_prediction(message.response, self._signature, total_seconds), None)


async def _as_async(items: Iterable[ItemT] | AsyncIterable[ItemT]) -> AsyncGenerator[ItemT, None]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


async def _end(task: asyncio.Task[None]) -> None:
    """Cancel a task of ours and wait until it is gone; what it raised is somebody else's to look at."""
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()
