"""The client: one object, one connection, everything that a server offers.

    async with Client("127.0.0.1:50051") as client:
        run = await client.start_training(dataset="digits", model="digits", trainer=ImageClassificationTrainer())
        async for event in run.follow():
            print(event.kind)
        prediction = await client.predict("digits", images)

`BlockingClient` is the same without `async`.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

import grpc

from headrace.channel import MIB
from headrace.dataset_calls import DatasetCalls
from headrace.health_calls import HealthCalls
from headrace.inference_calls import InferenceCalls
from headrace.model_calls import ModelCalls
from headrace.retry import Retry
from headrace.training_calls import TrainingCalls
from headrace.wire import Wire

DEFAULT_TARGET = "127.0.0.1:50051"


class Client(TrainingCalls, InferenceCalls, DatasetCalls, ModelCalls, HealthCalls):
    """A connection to one server, for the loop that first uses it.

    `target` is "host:port" or any gRPC target; `credentials` turn TLS on.  `timeout_seconds` is what each unary call
    may take that is not given its own `timeout`, all its repetitions and waits included; streams have no limit.
    Every failure is a HeadraceError (see `headrace.errors`); after `close` every call is a RuntimeError.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        timeout_seconds: float = 30.0,
        max_message_bytes: int = 64 * MIB,
        retry: Retry | None = None,
    ) -> None:
        self._wire = Wire(
            target,
            retry=retry or Retry(),
            timeout_seconds=timeout_seconds,
            max_message_bytes=max_message_bytes,
            credentials=credentials,
        )
        self._signatures = {}

    @property
    def target(self) -> str:
        """Where the server is."""
        return self._wire.target

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Hang up.  Jobs go on; open streams end.  Harmless when repeated."""
        await self._wire.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.target}>"
