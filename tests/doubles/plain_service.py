"""A gRPC service without messages of its own: bytes in, bytes out, in all four shapes; it does what a call asks of it.

It stands for the complete server, and tells what reached it.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from headrace_server import _native
from headrace_server.errors import Draining
from headrace_server.rpc.bounds import MAX_METADATA_BYTES, Bounds, unreadable
from headrace_server.rpc.door import told
from headrace_server.rpc.server import BEHIND_DOOR
from headrace_server.settings import ServerSettings

SERVICE = "plain.Service"


@dataclass
class PlainService:
    """What the calls so far were like."""

    metadata: list[dict[str, str | bytes]] = field(default_factory=list)
    remaining: list[float | None] = field(default_factory=list)
    num_written: int = 0
    """Answers of `flood` that gRPC has taken."""
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    half_closed: asyncio.Event = field(default_factory=asyncio.Event)
    waiting: asyncio.Event = field(default_factory=asyncio.Event)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)

    def methods(self) -> Any:
        """Its handlers, for a server."""
        methods: dict[str, Any] = {
            "echo": grpc.unary_unary_rpc_method_handler(self.echo),
            "fail": grpc.unary_unary_rpc_method_handler(self.fail),
            "wait": grpc.unary_unary_rpc_method_handler(self.wait),
            "count": grpc.unary_stream_rpc_method_handler(self.count),
            "greet": grpc.unary_stream_rpc_method_handler(self.greet),
            "flood": grpc.unary_stream_rpc_method_handler(self.flood),
            "sum": grpc.stream_unary_rpc_method_handler(self.sum),
            "refuse": grpc.stream_unary_rpc_method_handler(self.refuse),
            "answer_each": grpc.stream_stream_rpc_method_handler(self.answer_each),
            "never_read": grpc.stream_stream_rpc_method_handler(self.never_read),
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    async def echo(self, request: bytes, context: Any) -> bytes:
        """Answer with the request; the metadata that begins with "x-" comes back, before and after."""
        self._note(context)
        own = [pair for pair in context.invocation_metadata() if pair[0].startswith("x-") and "headrace" not in pair[0]]
        await context.send_initial_metadata(own)
        context.set_trailing_metadata(own)
        return request

    async def fail(self, request: bytes, context: Any) -> None:
        """Fail with all that a failure can carry."""
        details = (("grpc-status-details-bin", bytes(range(256))), ("x-more", "1"))
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "nö: 50 %\n", details)

    async def wait(self, request: bytes, context: Any) -> bytes:
        """Never answer, or when told to."""
        self._note(context)
        await self._until_told()
        return request

    async def count(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        """Answer as often as asked, then fail if asked."""
        for index in range(int(request)):
            yield b"%d" % index
        if int(request) > 3:
            await context.abort(grpc.StatusCode.DATA_LOSS, "that was too much")

    async def greet(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        """Send initial metadata at once, and answer only when told to."""
        await context.send_initial_metadata((("x-hello", "1"),))
        await self._until_told()
        yield request

    async def flood(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        """Answer with so many bytes each time, without end."""
        chunk = b"x" * int(request)
        try:
            while True:
                yield chunk
                self.num_written += 1
        finally:
            self.cancelled.set()

    async def sum(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        """Count the bytes."""
        total = 0
        async for request in requests:
            total += len(request)
        self.half_closed.set()
        return b"%d" % total

    async def refuse(self, requests: AsyncIterator[bytes], context: Any) -> None:
        """Read one message and end the call, whatever else the caller sends."""
        async for _ in requests:
            break
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "enough")

    async def answer_each(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        """Answer each message before the next; the end of the messages ends the call."""
        self._note(context)
        try:
            async for request in requests:
                yield request
            self.half_closed.set()
        finally:
            self.cancelled.set()  # to gRPC, a caller who hangs up may look like one who is done

    async def never_read(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        """Neither read nor answer until told to."""
        await self._until_told()
        yield b""

    async def _until_told(self) -> None:
        self.waiting.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    def _note(self, context: Any) -> None:
        self.metadata.append(dict(context.invocation_metadata()))
        self.remaining.append(context.time_remaining())


@dataclass
class Passage:
    """A native door with nothing of its own, the service behind it, and a channel."""

    service: PlainService
    server: grpc.aio.Server
    door: Any
    channel: grpc.aio.Channel

    def method(self, name: str) -> Any:
        """A caller of one method."""
        path = f"/{SERVICE}/{name}"
        match name:
            case "count" | "greet" | "flood":
                return self.channel.unary_stream(path)
            case "sum" | "refuse":
                return self.channel.stream_unary(path)
            case "answer_each" | "never_read":
                return self.channel.stream_stream(path)
            case _:
                return self.channel.unary_unary(path)


@asynccontextmanager
async def open_passage(
    folder: Path,
    *,
    max_message_bytes: int = 4 << 20,
    max_buffered_bytes: int = 1 << 30,
    max_concurrent_calls: int = 100,
) -> AsyncIterator[Passage]:
    """Put a door in front of a plain service until the block ends."""
    service = PlainService()
    server = grpc.aio.server(options=[*BEHIND_DOOR])
    server.add_generic_rpc_handlers((service.methods(),))
    server.add_insecure_port(f"unix:{folder}/s")
    await server.start()
    bounds = Bounds(
        ServerSettings.model_construct(
            max_message_bytes=max_message_bytes,
            max_buffered_bytes=max_buffered_bytes,
            max_concurrent_calls=max_concurrent_calls,
        )
    )
    door = _native.Door(
        address="127.0.0.1:0",
        complete_server=f"unix:{folder}/s",
        max_message_bytes=max_message_bytes,
        max_metadata_bytes=MAX_METADATA_BYTES,
        max_buffered_bytes=max_buffered_bytes,
        max_concurrent_calls=max_concurrent_calls,
        gone=told(Draining()),
        too_many_calls=told(bounds.too_many_calls()),
        too_much_metadata=told(bounds.too_much_metadata()),
        too_large=told(bounds.too_large()),
        no_room=told(bounds.buffers_full()),
        malformed=told(unreadable()),
    )
    assert door.bind()
    door.open()
    try:
        options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{door.port}", options=options) as channel:
            yield Passage(service, server, door, channel)
    finally:
        await asyncio.to_thread(door.close, 0)
        await server.stop(0)
