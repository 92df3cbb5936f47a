"""One connection to one server: makes calls in time, again where that is safe, and turns failures into errors.

Knows no call's meaning.  The connection is dialled at the first call and belongs to the loop of that call.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import grpc

from headrace.channel import open_channel
from headrace.datasets.v1.dataset_service_pb2_grpc import DatasetServiceStub
from headrace.ending import Ending, Wish
from headrace.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from headrace.models.v1.model_service_pb2_grpc import ModelServiceStub
from headrace.retry import Retry
from headrace.status import from_call
from headrace.training.v1.training_service_pb2_grpc import TrainingServiceStub

if TYPE_CHECKING:
    from headrace.datasets.v1.dataset_service_pb2_grpc import DatasetServiceAsyncStub
    from headrace.inference.v1.inference_service_pb2_grpc import InferenceServiceAsyncStub
    from headrace.models.v1.model_service_pb2_grpc import ModelServiceAsyncStub
    from headrace.training.v1.training_service_pb2_grpc import TrainingServiceAsyncStub

RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")
ResultT = TypeVar("ResultT")


class Wire:
    """A connection.  `timeout_seconds` is what a unary call gets that is not given its own; streams get none."""

    def __init__(
        self,
        target: str,
        *,
        retry: Retry,
        timeout_seconds: float,
        max_message_bytes: int,
        credentials: grpc.ChannelCredentials | None,
    ) -> None:
        self.target = target
        self.retry = retry
        self.timeout_seconds = timeout_seconds
        self._max_message_bytes = max_message_bytes
        self._credentials = credentials
        self._channel: grpc.aio.Channel | None = None
        self._is_closed = False

    @property
    def channel(self) -> grpc.aio.Channel:
        """The channel, opened now if it was not.  Raises RuntimeError once the client is closed."""
        if self._is_closed:
            raise RuntimeError("this client is closed; make a new one")
        if self._channel is None:
            self._channel = open_channel(self.target, self._credentials, self._max_message_bytes)
        return self._channel

    @cached_property
    def training(self) -> TrainingServiceAsyncStub:
        """The generated stub."""
        return TrainingServiceStub(self.channel)

    @cached_property
    def inference(self) -> InferenceServiceAsyncStub:
        """The generated stub."""
        return InferenceServiceStub(self.channel)

    @cached_property
    def models(self) -> ModelServiceAsyncStub:
        """The generated stub."""
        return ModelServiceStub(self.channel)

    @cached_property
    def datasets(self) -> DatasetServiceAsyncStub:
        """The generated stub."""
        return DatasetServiceStub(self.channel)

    async def close(self) -> None:
        """Hang up; calls under way end with an error.  Harmless when repeated."""
        self._is_closed = True
        if self._channel is not None:
            channel, self._channel = self._channel, None
            await channel.close()

    async def call_once(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[RequestT, ResponseT],
        request: RequestT,
        timeout: float | None = None,
    ) -> ResponseT:
        """Make a call that must not reach the server twice, or a read, which gRPC repeats by itself."""
        self._check_open()
        try:
            return await method(request, timeout=self.timeout_seconds if timeout is None else timeout)
        except grpc.aio.AioRpcError as error:
            raise from_call(error) from error

    async def call_safely(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[RequestT, ResponseT],
        request: RequestT,
        timeout: float | None = None,
    ) -> ResponseT:
        """Make a call that may reach the server twice without harm, as often as `retry` and the time allow."""

        async def call(remaining: float | None) -> ResponseT:
            return await method(request, timeout=remaining)

        return await self.repeat(call, self.timeout_seconds if timeout is None else timeout)

    async def repeat(self, call: Callable[[float | None], Awaitable[ResultT]], timeout: float | None) -> ResultT:
        """Await `call(seconds left)` until it succeeds, is refused for good, or no time is left for another try.

        A wait that the server asks for and that does not fit into the time left is not begun: the error is raised at
        once, so that its `retry_after` is still worth something.
        """
        self._check_open()
        clock = self.retry.clock
        wish = Wish()
        deadline = None if timeout is None else clock.monotonic() + timeout
        tries = 0
        while True:
            remaining = None if deadline is None else deadline - clock.monotonic()
            try:
                return await call(remaining)
            except grpc.aio.AioRpcError as failure:
                wish.check()
                error = from_call(failure)
                tries += 1
                wait = self.retry.wait_before_repeat(tries, error)
                if wait is None or (deadline is not None and clock.monotonic() + wait >= deadline):
                    raise error from failure
            await clock.sleep(wait)

    async def read(self, call: grpc.aio.UnaryStreamCall[RequestT, ResponseT]) -> AsyncGenerator[ResponseT, None]:
        """Yield the messages of a stream; hangs up when the reader stops."""
        try:
            async for message in call:
                yield message
        except grpc.aio.AioRpcError as error:
            raise from_call(error) from error
        finally:
            call.cancel()

    async def send(
        self, method: grpc.aio.StreamUnaryMultiCallable[RequestT, ResponseT], messages: AsyncIterator[RequestT]
    ) -> ResponseT:
        """Send a stream of messages and return the answer; hangs up when `messages` raises, so that nothing is kept.

        Raises AioRpcError: this is one try for `repeat`.
        """
        call = method()
        ending = Ending(call)
        try:
            try:
                async for message in messages:
                    await call.write(message)
                await call.done_writing()
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                pass  # the server has answered before the end; its status, awaited below, says why
            return await call
        except grpc.aio.AioRpcError as error:
            raise await ending.true_error(error) from error
        finally:
            call.cancel()

    def _check_open(self) -> None:
        if self._is_closed:
            raise RuntimeError("this client is closed; make a new one")
