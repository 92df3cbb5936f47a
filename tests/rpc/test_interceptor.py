import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
import structlog
from google.protobuf.wrappers_pb2 import StringValue

from headrace.ending import Ending
from headrace_server.errors import JobNotFound
from headrace_server.rpc.interceptor import Context, Interceptor
from headrace_server.telemetry.metrics import Metrics
from tests.doubles.until import until

SHAPES = ("UnaryUnary", "UnaryStream", "StreamUnary", "StreamStream")


class Scripted:
    """One method of each shape; each does what the request says."""

    def __init__(self) -> None:
        self.num_calls = 0
        self.num_closed = 0
        self.request_ids: list[str] = []

    async def act(self, order: str) -> StringValue:
        self.num_calls += 1
        self.request_ids.append(structlog.contextvars.get_contextvars()["request_id"])
        match order:
            case "not found":
                raise JobNotFound("trainingJobs/x")
            case "bug":
                raise RuntimeError("hidden")
            case "wait":
                try:
                    await asyncio.Event().wait()
                finally:
                    self.num_closed += 1
        return StringValue(value=order)

    async def unary_unary(self, request: StringValue, context: Context) -> StringValue:
        return await self.act(request.value)

    async def unary_stream(self, request: StringValue, context: Context) -> AsyncIterator[StringValue]:
        yield await self.act(request.value)

    async def stream_unary(self, requests: AsyncIterator[StringValue], context: Context) -> StringValue:
        return await self.act((await anext(requests)).value)

    async def stream_stream(self, requests: AsyncIterator[StringValue], context: Context) -> AsyncIterator[StringValue]:
        yield await self.act((await anext(requests)).value)


@dataclass
class Bench:
    scripted: Scripted
    metrics: Metrics
    closing: asyncio.Event
    server: grpc.aio.Server
    channel: grpc.aio.Channel

    async def call(self, shape: str, order: bytes | str, request_id: str | None = None) -> tuple[str, dict[str, str]]:
        """What the method answers, and its trailing metadata."""
        content = order if isinstance(order, bytes) else StringValue(value=order).SerializeToString()
        path = f"/test.Scripted/{shape}"
        metadata = (("x-request-id", request_id),) if request_id is not None else ()
        requests = _one(content) if shape.startswith("Stream") else content
        make = {
            "UnaryUnary": self.channel.unary_unary,
            "UnaryStream": self.channel.unary_stream,
            "StreamUnary": self.channel.stream_unary,
            "StreamStream": self.channel.stream_stream,
        }[shape]
        call = make(path)(requests, metadata=metadata)  # type: ignore[operator]
        ending = Ending(call)
        try:
            answers = [answer async for answer in call] if shape.endswith("Stream") else [await call]
        except grpc.aio.AioRpcError as error:
            raise await ending.true_error(error) from None
        trailing = {key: value for key, value in await call.trailing_metadata() if isinstance(value, str)}
        return StringValue.FromString(answers[0]).value, trailing

    def ended(self, shape: str, code: str) -> float | None:
        labels = {"method": f"test.Scripted/{shape}", "code": code}
        return self.metrics.registry.get_sample_value("headrace_calls_total", labels)

    def in_flight(self) -> float | None:
        return self.metrics.registry.get_sample_value("headrace_calls_in_flight")


@asynccontextmanager
async def open_bench(*, trusts_door: bool = False) -> AsyncIterator[Bench]:
    scripted, metrics, closing = Scripted(), Metrics(), asyncio.Event()
    server = grpc.aio.server()
    codec = (StringValue.FromString, StringValue.SerializeToString)
    methods = {
        "UnaryUnary": grpc.unary_unary_rpc_method_handler(scripted.unary_unary, *codec),
        "UnaryStream": grpc.unary_stream_rpc_method_handler(scripted.unary_stream, *codec),
        "StreamUnary": grpc.stream_unary_rpc_method_handler(scripted.stream_unary, *codec),
        "StreamStream": grpc.stream_stream_rpc_method_handler(scripted.stream_stream, *codec),
    }
    interceptor = Interceptor(metrics, closing)
    if trusts_door:
        interceptor.trust_door()
    interceptor.add_methods("test.Scripted", methods, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Bench(scripted, metrics, closing, server, channel)
    finally:  # a server that a failed test leaves would trouble others
        await server.stop(0)


async def _one(content: bytes) -> AsyncIterator[bytes]:
    yield content


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_call_is_answered_counted_and_has_an_id(shape: str) -> None:
    async with open_bench() as bench:
        answer, trailing = await bench.call(shape, "hello", request_id="mine-1")

        assert answer == "hello"
        assert trailing["x-request-id"] == "mine-1"
        assert bench.scripted.request_ids == ["mine-1"]
        assert bench.ended(shape, "OK") == 1
        assert bench.in_flight() == 0


@pytest.mark.parametrize("given", [None, "", "x" * 129])
async def test_an_id_is_made_where_none_that_can_be_used_was_sent(given: str | None) -> None:
    async with open_bench() as bench:
        _, trailing = await bench.call("UnaryUnary", "hello", request_id=given)

        assert len(trailing["x-request-id"]) == 16


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("order", "code"), [("not found", grpc.StatusCode.NOT_FOUND), ("bug", grpc.StatusCode.INTERNAL)]
)
async def test_an_error_reaches_the_caller_with_its_details_and_the_id(
    shape: str, order: str, code: grpc.StatusCode
) -> None:
    async with open_bench() as bench:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await bench.call(shape, order, request_id="mine")

        assert caught.value.code() is code
        assert "hidden" not in str(caught.value)
        trailing = dict(caught.value.trailing_metadata() or ())
        assert trailing["x-request-id"] == "mine"
        assert "grpc-status-details-bin" in trailing
        await until(lambda: bench.ended(shape, code.name) == 1)
        assert bench.scripted.num_calls == 1


@pytest.mark.parametrize("shape", SHAPES)
async def test_bytes_that_are_no_message_never_reach_a_handler(shape: str) -> None:
    async with open_bench() as bench:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await bench.call(shape, b"\xff\xff")

        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert bench.scripted.num_calls == 0


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_caller_who_hangs_up_ends_the_handler_at_once(shape: str) -> None:
    async with open_bench() as bench:
        calling = asyncio.ensure_future(bench.call(shape, "wait"))
        await until(lambda: bench.scripted.num_calls == 1)

        calling.cancel()

        await until(lambda: bench.scripted.num_closed == 1)
        await until(lambda: bench.ended(shape, "CANCELLED") == 1)
        assert bench.in_flight() == 0


async def test_a_deadline_that_passes_is_counted_as_one() -> None:
    async with open_bench() as bench:
        call: Any = bench.channel.unary_unary("/test.Scripted/UnaryUnary")
        seconds = 0.1
        while bench.scripted.num_calls == 0:  # on a busy machine the first ones may not get so far in their time
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(StringValue(value="wait").SerializeToString(), timeout=seconds)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            seconds *= 2

        await until(lambda: (bench.ended("UnaryUnary", "DEADLINE_EXCEEDED") or 0) >= 1)


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_closing_server_refuses_new_calls_and_finishes_those_it_has(shape: str) -> None:
    async with open_bench() as bench:
        calling = asyncio.ensure_future(bench.call(shape, "wait"))
        await until(lambda: bench.scripted.num_calls == 1)
        bench.closing.set()

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await bench.call(shape, "hello")

        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert bench.scripted.num_closed == 0
        calling.cancel()
        await until(lambda: bench.scripted.num_closed == 1)


async def test_methods_that_nobody_knows_get_no_label() -> None:
    async with open_bench() as bench:
        unknown: Any = bench.channel.unary_unary("/test.Scripted/MadeUpByACaller")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await unknown(b"")

        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        names = {
            sample.labels.get("method") for family in bench.metrics.registry.collect() for sample in family.samples
        }
        assert not any(name and "MadeUp" in name for name in names)


@pytest.mark.parametrize("trusts_door", [True, False])
async def test_only_a_trusted_door_can_say_that_a_call_is_a_part_of_what_it_has_taken(trusts_door: bool) -> None:
    async with open_bench(trusts_door=trusts_door) as bench:
        bench.closing.set()
        content = StringValue(value="hello").SerializeToString()
        ask: Any = bench.channel.unary_unary("/test.Scripted/UnaryUnary")
        call = ask(content, metadata=(("x-headrace-part", "1"),))

        if trusts_door:
            assert StringValue.FromString(await call).value == "hello"
            assert bench.ended("UnaryUnary", "OK") == 0
        else:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_server_that_ends_waits_until_nobody_is_turned_away_anywhere() -> None:
    interceptor = Interceptor(Metrics(), asyncio.Event())
    seen: list[int] = []

    def num_turned_away_elsewhere() -> int:
        seen.append(min(len(seen), 5))
        return seen[-1]

    await interceptor.wait_until_quiet(0.02, num_turned_away_elsewhere)

    assert seen[:6] == [0, 1, 2, 3, 4, 5]
    assert seen.count(5) > 1
