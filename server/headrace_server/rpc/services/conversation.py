"""One PredictStream: many requests at a time over one connection, each answered when it is done.

At most `window` requests are under way; the stream is read no further until an answer has been taken.  So a caller who
does not read is waited for, and costs a bounded amount of memory.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine

from headrace.inference.v1 import inference_service_pb2 as pb
from headrace_server.errors import Draining, InvalidSpec, TimedOut, Violation
from headrace_server.rpc.deadline import deadline_of
from headrace_server.rpc.interceptor import Context
from headrace_server.rpc.status import Statuses
from headrace_server.rpc.wire.events import duration_from_proto

Predict = Callable[[pb.PredictRequest, float | None], Awaitable[pb.PredictResponse]]


class Conversation:
    """The state of one stream, which owns the tasks of its requests."""

    def __init__(self, predict: Predict, statuses: Statuses, closing: asyncio.Event, window: int) -> None:
        self._predict = predict
        self._statuses = statuses
        self._closing = closing
        self._free = asyncio.Semaphore(window)
        self._ids: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._answers: asyncio.Queue[pb.PredictStreamResponse | None] = asyncio.Queue()  # at most `window`, and an end
        self._num_open = 0
        self._is_read = False
        self._failure: Exception | None = None

    async def hold(self, requests: AsyncIterator[pb.PredictStreamRequest], context: Context) -> None:
        """Answer every request, then return.

        Raises Draining when the server closes, after what is under way has been answered.
        """
        reader = self._own(self._read(requests, deadline_of(context)))
        watcher = self._own(self._watch(reader))
        try:
            while not (self._is_read and self._num_open == 0):
                answer = await self._answers.get()
                if answer is None:
                    continue
                self._ids.discard(answer.id)  # from here on the caller may see the answer and use the id again
                self._num_open -= 1
                await context.write(answer)
                self._free.release()
        finally:
            watcher.cancel()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._failure is not None:
            raise self._failure

    def _own(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _watch(self, reader: asyncio.Task[None]) -> None:
        await self._closing.wait()
        reader.cancel()

    async def _read(self, requests: AsyncIterator[pb.PredictStreamRequest], deadline: float | None) -> None:
        try:
            await self._free.acquire()
            async for request in requests:
                self._num_open += 1
                if request.id in self._ids:
                    self._answers.put_nowait(self._refusal(request.id, _twice(request.id)))
                else:
                    self._ids.add(request.id)
                    self._own(self._answer(request, deadline))
                await self._free.acquire()
        except asyncio.CancelledError:
            if not self._closing.is_set():
                raise
            self._failure = Draining()
        except Exception as error:  # noqa: BLE001 - it ends the call, after what is under way has been answered
            self._failure = error
        finally:
            self._is_read = True
            self._answers.put_nowait(None)

    async def _answer(self, request: pb.PredictStreamRequest, deadline: float | None) -> None:
        try:
            due_at = _due_at(request, deadline)
            async with asyncio.timeout_at(due_at):
                response = await self._predict(request.request, due_at)
            answer = pb.PredictStreamResponse(id=request.id, response=response)
        except TimeoutError:
            answer = self._refusal(request.id, TimedOut(duration_from_proto(request.timeout)))
        except Exception as error:  # noqa: BLE001 - a failed request is an answer too
            answer = self._refusal(request.id, error)
        self._answers.put_nowait(answer)

    def _refusal(self, request_id: str, error: Exception) -> pb.PredictStreamResponse:
        return pb.PredictStreamResponse(id=request_id, error=self._statuses.of(error))


def _due_at(request: pb.PredictStreamRequest, deadline: float | None) -> float | None:
    if not request.HasField("timeout"):
        return deadline
    timeout_seconds = duration_from_proto(request.timeout)
    if timeout_seconds <= 0:
        raise InvalidSpec([Violation("timeout", "must be above 0")])
    due_at = asyncio.get_running_loop().time() + timeout_seconds
    return due_at if deadline is None else min(due_at, deadline)


def _twice(request_id: str) -> InvalidSpec:
    return InvalidSpec([Violation("id", f"{request_id!r} is the id of a request that is still under way")])
