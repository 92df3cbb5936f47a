"""The agent's line to the server: dialled again whenever it breaks, so that a restart of the server loses nothing.

Knows the private contract; knows nothing of trainers.  Reports go up from the outbox, in order, from the first that the
server does not keep; heartbeats go between them; acknowledgements and orders to stop come down.

A server that is gone is seen at once on the local socket.  One that hangs is seen when it acknowledges nothing for
`Patience.acknowledgement_seconds`.
"""

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn, TypeAlias

import grpc
import structlog
from google.rpc import error_details_pb2, status_pb2

from headrace_server.errors import WorkerFenced
from headrace_server.rpc.wire.worker import hello_to_proto, stop_from_proto
from headrace_server.training.session import ProfileWorker, StopWorker, WorkerHello
from headrace_server.worker.outbox import Outbox
from headrace_server.worker.v1 import worker_service_pb2 as pb
from headrace_server.worker.v1.worker_service_pb2_grpc import WorkerServiceStub

_Call: TypeAlias = "grpc.aio.StreamStreamCall[pb.AttachRequest, pb.AttachResponse]"

_OPTIONS = (
    # Without a pool of its own a new channel would inherit the wait that an old one had run up.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
)

log = structlog.get_logger()


class Dismissed(Exception):
    """The server has no more use for this attempt: a newer one has the job, or there is no such job."""


class _Broken(Exception):
    """The connection is of no use any more."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the link waits, in seconds."""

    first_redial_seconds: float = 0.05
    """Before the first attempt to dial again; doubles."""
    longest_redial_seconds: float = 1.0
    welcome_seconds: float = 10.0
    acknowledgement_seconds: float = 30.0


class Link:
    """See the module.  `trainer_pid` is asked at each heartbeat; `on_stop` is told each order, also repeated ones."""

    def __init__(
        self,
        address: str,
        hello: WorkerHello,
        outbox: Outbox,
        *,
        heartbeat_seconds: float,
        detached_seconds: float,
        on_stop: Callable[[StopWorker], None],
        on_profile: Callable[[ProfileWorker], None],
        trainer_pid: Callable[[], int],
        patience: Patience | None = None,
    ) -> None:
        self._address = address
        self._hello = hello
        self._outbox = outbox
        self._heartbeat_seconds = heartbeat_seconds
        self._detached_seconds = detached_seconds
        self._on_stop = on_stop
        self._on_profile = on_profile
        self._trainer_pid = trainer_pid
        self._patience = patience or Patience()
        self._was_welcome = False
        self._acknowledged_at = 0.0
        self.detached = asyncio.Event()
        """Set once there was no server for `detached_seconds` on end; never cleared."""

    async def run(self) -> NoReturn:
        """Keep the line up until cancelled.  Raises Dismissed."""
        loop = asyncio.get_running_loop()
        redial_seconds = self._patience.first_redial_seconds
        alone = loop.call_later(self._detached_seconds, self.detached.set)
        try:
            while True:
                self._was_welcome = False
                problem = await self._attach(alone)
                if (task := asyncio.current_task()) is not None and task.cancelling():
                    # gRPC tells of a call's end alone where that and a cancellation meet.
                    raise asyncio.CancelledError
                if self._was_welcome:
                    redial_seconds = self._patience.first_redial_seconds
                    alone = loop.call_later(self._detached_seconds, self.detached.set)
                    log.info("link.lost", problem=problem)
                # Jitter, so that the agents of a restarted server do not all dial at one moment.
                await asyncio.sleep(redial_seconds * random.uniform(0.5, 1))  # noqa: S311
                redial_seconds = min(2 * redial_seconds, self._patience.longest_redial_seconds)
        finally:
            alone.cancel()

    async def _attach(self, alone: asyncio.TimerHandle) -> str:
        """Hold one connection until it ends; returns why it did.  Raises Dismissed."""
        async with grpc.aio.insecure_channel(self._address, options=_OPTIONS) as channel:
            call: _Call = WorkerServiceStub(channel).Attach()
            try:
                await self._greet(call)
                self._was_welcome = True
                alone.cancel()
                log.info("link.attached", acknowledged=self._outbox.acknowledged)
                await self._talk(call)
                return "the server ended the connection"
            except grpc.aio.AioRpcError as error:
                _raise_if_dismissed(error)
                return f"{error.code().name}: {error.details()}"
            except (_Broken, asyncio.InvalidStateError) as error:
                return str(error)
            finally:
                call.cancel()

    async def _greet(self, call: _Call) -> None:
        try:
            async with asyncio.timeout(self._patience.welcome_seconds):
                await call.write(pb.AttachRequest(hello=hello_to_proto(self._hello)))
                answer = await call.read()
        except TimeoutError:
            raise _Broken("the server did not answer") from None
        if not isinstance(answer, pb.AttachResponse) or answer.WhichOneof("message") != "welcome":
            await _raise_status(call)
            raise _Broken("the server did not welcome the agent")
        await self._outbox.acknowledge(answer.welcome.acknowledged)

    async def _talk(self, call: _Call) -> None:
        """Send and receive until either ends; raises what it raised.

        Not a TaskGroup: where an error of its own and a cancellation from outside meet, that of Python 3.11 tells of
        the error alone, and who cancelled would wait for ever.
        """
        both = (asyncio.ensure_future(self._receive(call)), asyncio.ensure_future(self._send(call)))
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in both:
                task.cancel()
            await asyncio.wait(both)
        errors = [error for task in both if not task.cancelled() and (error := task.exception()) is not None]
        if errors:
            raise errors[0]

    async def _receive(self, call: _Call) -> None:
        while isinstance(response := await call.read(), pb.AttachResponse):
            match response.WhichOneof("message"):
                case "acknowledgement":
                    self._acknowledged_at = time.monotonic()
                    await self._outbox.acknowledge(response.acknowledgement.up_to)
                case "stop":
                    self._on_stop(stop_from_proto(response.stop))
                case "profile":
                    self._on_profile(ProfileWorker(num_steps=response.profile.num_steps))
        await _raise_status(call)

    async def _send(self, call: _Call) -> None:
        sent = self._outbox.acknowledged
        self._acknowledged_at = time.monotonic()
        beat_at = 0.0
        while True:
            for report in await self._outbox.read(sent):
                beat_at = await self._beat_if_due(call, beat_at)
                await self._write(call, pb.AttachRequest(report=report))
                sent = report.number
            beat_at = await self._beat_if_due(call, beat_at)
            if sent <= self._outbox.acknowledged:
                self._acknowledged_at = time.monotonic()
            elif time.monotonic() - self._acknowledged_at > self._patience.acknowledgement_seconds:
                raise _Broken("the server acknowledges nothing")
            try:
                async with asyncio.timeout(beat_at - time.monotonic()):
                    await self._outbox.wait_for_more(sent)
            except TimeoutError:
                pass

    async def _beat_if_due(self, call: _Call, beat_at: float) -> float:
        """Send a sign of life if it is time; returns when the next is due."""
        if time.monotonic() < beat_at:
            return beat_at
        await self._write(call, pb.AttachRequest(beat=pb.Beat(trainer_pid=self._trainer_pid())))
        return time.monotonic() + self._heartbeat_seconds

    async def _write(self, call: _Call, request: pb.AttachRequest) -> None:
        try:
            async with asyncio.timeout(self._patience.acknowledgement_seconds):
                await call.write(request)
        except TimeoutError:
            raise _Broken("the server reads nothing") from None


async def _raise_status(call: _Call) -> None:
    """Raise AioRpcError for a call that ended with an error, which a read that finds its end does not tell."""
    code = await call.code()
    if code is not grpc.StatusCode.OK:
        raise grpc.aio.AioRpcError(
            code, await call.initial_metadata(), await call.trailing_metadata(), await call.details()
        )


def _raise_if_dismissed(error: grpc.aio.AioRpcError) -> None:
    # Attach has no other ABORTED and no other NOT_FOUND than these two.
    if error.code() is grpc.StatusCode.ABORTED and not _is_by_ourselves(error):
        raise Dismissed(f"a newer worker has the job: {error.details()}") from error
    if error.code() is grpc.StatusCode.NOT_FOUND:
        raise Dismissed(f"there is no such job: {error.details()}") from error


def _is_by_ourselves(error: grpc.aio.AioRpcError) -> bool:
    """Whether what took the job from this connection is another connection of this very attempt: it is still ours."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info) and info.reason == WorkerFenced.reason:
                    return str(info.metadata["current"]) == str(info.metadata["attempt"])
    return False
