"""What the native door passes through arrives as it was sent, both ways."""

import asyncio
import itertools
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from headrace_server import _native
from tests.doubles.plain_service import Passage, open_passage
from tests.doubles.until import until

pytestmark = pytest.mark.skipif(not _native.door_built, reason="built without gRPC for C++")


@pytest.fixture
async def passage(tmp_path: Path) -> AsyncIterator[Passage]:
    async with open_passage(tmp_path) as opened:
        yield opened


async def test_metadata_travels_both_ways_with_bytes_repetitions_and_order(passage: Passage) -> None:
    sent = (("x-word", "a"), ("x-some-bin", bytes(range(256))), ("x-word", "b"), ("x-empty", ""))

    call = passage.method("echo")(b"hello", metadata=sent)

    assert await call == b"hello"
    for received in (await call.initial_metadata(), await call.trailing_metadata()):
        assert sorted(received, key=str) == sorted(sent, key=str)
        assert [value for key, value in received if key == "x-word"] == ["a", "b"]


async def test_the_callers_address_is_told_and_cannot_be_forged(passage: Passage) -> None:
    await passage.method("echo")(b"", metadata=(("x-headrace-peer", "ipv4:10.0.0.1:1"), ("x-headrace-part", "1")))

    told = passage.service.metadata[0]
    assert str(told["x-headrace-peer"]).startswith("ipv4:127.0.0.1:")
    assert "x-headrace-part" not in told
    assert "grpc-python-asyncio" in str(told["x-headrace-user-agent"])


async def test_a_status_keeps_its_code_its_words_and_its_details(passage: Passage) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await passage.method("fail")(b"")

    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert caught.value.details() == "nö: 50 %\n"
    assert sorted(caught.value.trailing_metadata()) == [
        ("grpc-status-details-bin", bytes(range(256))),
        ("x-more", "1"),
    ]


async def test_an_unknown_method_is_the_complete_servers_to_refuse(passage: Passage) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await passage.method("no_such_method")(b"")

    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("num_answers", [0, 1, 3])
async def test_a_stream_of_answers_is_whole_and_ends_well(passage: Passage, num_answers: int) -> None:
    call = passage.method("count")(b"%d" % num_answers)

    assert [answer async for answer in call] == [b"%d" % index for index in range(num_answers)]
    assert await call.code() is grpc.StatusCode.OK


async def test_a_stream_of_answers_that_breaks_is_whole_until_then(passage: Passage) -> None:
    call = passage.method("count")(b"5")

    assert [await call.read() for _ in range(5)] == [b"%d" % index for index in range(5)]
    with pytest.raises(grpc.aio.AioRpcError, match="that was too much"):
        await call.read()


async def test_initial_metadata_does_not_wait_for_the_first_answer(passage: Passage) -> None:
    call = passage.method("greet")(b"late")

    assert ("x-hello", "1") in tuple(await asyncio.wait_for(call.initial_metadata(), 60))
    passage.service.go_on.set()
    assert [answer async for answer in call] == [b"late"]


async def test_many_requests_are_one_call(passage: Passage) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"y" * 100_000

    assert await passage.method("sum")(chunks()) == b"2000000"


async def test_each_message_is_passed_on_before_the_next_and_so_is_the_end(passage: Passage) -> None:
    call: Any = passage.method("answer_each")()
    for word in (b"", b"one", b"two" * 100_000):
        await call.write(word)
        assert await call.read() == word
    assert not passage.service.half_closed.is_set()

    await call.done_writing()

    assert await call.read() is grpc.aio.EOF
    assert passage.service.half_closed.is_set()
    assert await call.code() is grpc.StatusCode.OK


async def test_a_refusal_reaches_a_caller_who_is_still_sending(passage: Passage) -> None:
    def send_without_end() -> grpc.RpcError:
        # Not the asynchronous client: a write that meets the end of its call is a fault of its own to that.
        with grpc.insecure_channel(f"127.0.0.1:{passage.door.port}") as channel:
            refuse: Any = channel.stream_unary("/plain.Service/refuse")
            with pytest.raises(grpc.RpcError) as caught:
                refuse(itertools.repeat(b"z" * 10_000), timeout=60)
            return caught.value

    error: Any = await asyncio.to_thread(send_without_end)

    assert (error.code(), error.details()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "enough")


async def test_a_deadline_is_known_behind_the_door(passage: Passage) -> None:
    await passage.method("echo")(b"", timeout=700)
    await passage.method("echo")(b"")

    first, second = passage.service.remaining
    assert first is not None
    assert 600 < first < 720  # gRPC rounds up, twice
    assert second is None


async def test_a_call_whose_deadline_passes_ends_on_both_sides(passage: Passage) -> None:
    seconds = 0.2
    while not passage.service.waiting.is_set():  # on a busy machine the first ones may not get so far in their time
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await passage.method("wait")(b"", timeout=seconds)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        seconds *= 2

    await asyncio.wait_for(passage.service.cancelled.wait(), 60)
    await until(lambda: passage.door.calls_in_flight == 0)


@pytest.mark.parametrize("name", ["wait", "greet", "never_read", "answer_each"])
async def test_a_caller_who_hangs_up_is_heard_behind_the_door(passage: Passage, name: str) -> None:
    call = passage.method(name)(*([] if name in ("never_read", "answer_each") else [b""]))
    if name == "answer_each":
        await call.write(b"x")
        await call.read()
    else:
        if name == "never_read":
            await call.write(b"x")
        await asyncio.wait_for(passage.service.waiting.wait(), 60)

    call.cancel()

    await asyncio.wait_for(passage.service.cancelled.wait(), 60)
    await until(lambda: passage.door.calls_in_flight == 0)


async def test_a_caller_who_hangs_up_in_the_middle_of_answers_is_heard(passage: Passage) -> None:
    call = passage.method("flood")(b"50000")
    await call.read()

    call.cancel()

    await asyncio.wait_for(passage.service.cancelled.wait(), 60)
    await until(lambda: passage.door.calls_in_flight == 0)


async def test_a_reader_who_stops_reading_is_waited_for(passage: Passage) -> None:
    call = passage.method("flood")(b"100000")
    await call.read()
    await until_steady(passage)
    written = passage.service.num_written

    for _ in range(written):
        await call.read()

    assert written < 400  # windows of two connections, which grow with what they carry; the rest waits where it is made
    await until(lambda: passage.service.num_written > written)
    call.cancel()


async def until_steady(passage: Passage) -> None:
    """Wait until nothing more is written for a while."""
    last = -1
    while last != passage.service.num_written:
        last = passage.service.num_written
        await asyncio.sleep(0.3)  # nothing tells that nothing will happen


async def test_a_service_that_does_not_read_holds_its_caller_back(passage: Passage) -> None:
    call: Any = passage.method("never_read")()
    num_written = 0

    async def write_without_end() -> None:
        nonlocal num_written
        while num_written < 1000:
            await call.write(b"x" * 100_000)
            num_written += 1

    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(write_without_end(), 3)

    assert num_written < 400
    call.cancel()


async def test_a_message_may_be_as_large_as_the_limit_and_no_larger(passage: Passage) -> None:
    assert len(await passage.method("echo")(b"m" * (4 << 20))) == 4 << 20
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await passage.method("echo")(b"m" * ((4 << 20) + 1))

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "server.max_message_bytes" in (caught.value.details() or "")


async def test_more_calls_than_there_may_be_are_refused_and_the_others_go_on(tmp_path: Path) -> None:
    async with open_passage(tmp_path, max_concurrent_calls=2) as passage:
        calls = [passage.method("wait")(b"%d" % index) for index in range(2)]
        await until(lambda: passage.door.calls_in_flight == 2)

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await passage.method("echo")(b"")

        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        passage.service.go_on.set()
        assert [await call for call in calls] == [b"0", b"1"]
        await until(lambda: passage.door.calls_in_flight == 0)
        assert await passage.method("echo")(b"again") == b"again"


async def test_a_complete_server_that_is_gone_is_told_as_a_server_that_is_ending(passage: Passage) -> None:
    waiting = passage.method("wait")(b"")
    await passage.service.waiting.wait()

    await passage.server.stop(0)

    for call in (waiting, passage.method("echo")(b"")):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        status = rpc_status.from_call(caught.value)
        assert status is not None
        info = error_details_pb2.ErrorInfo()
        assert status.details[0].Unpack(info)
        assert info.reason == "SERVER_DRAINING"


async def test_calls_in_flight_are_finished_while_the_door_closes(passage: Passage) -> None:
    call = passage.method("wait")(b"still here")
    await passage.service.waiting.wait()

    closing = asyncio.ensure_future(asyncio.to_thread(passage.door.close, 30))
    await asyncio.sleep(0.1)  # lets the door begin; whenever it does, the call is finished
    passage.service.go_on.set()

    assert await call == b"still here"
    await asyncio.wait_for(closing, 60)


async def test_a_door_in_a_hurry_does_not_wait_for_calls(passage: Passage) -> None:
    call = passage.method("wait")(b"")
    await passage.service.waiting.wait()
    closing = asyncio.ensure_future(asyncio.to_thread(passage.door.close, 60))

    while not closing.done():
        passage.door.hurry()
        await asyncio.sleep(0.05)

    with pytest.raises(grpc.aio.AioRpcError):
        await call
    await asyncio.wait_for(passage.service.cancelled.wait(), 60)


def test_a_port_that_is_taken_is_not_shared() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        door = _native.Door(
            address=f"127.0.0.1:{taken.getsockname()[1]}",
            complete_server="unix:/nowhere",
            max_message_bytes=1 << 20,
            max_metadata_bytes=1 << 14,
            max_buffered_bytes=1 << 24,
            max_concurrent_calls=1,
            gone=(14, "", b""),
            too_many_calls=(8, "", b""),
            too_much_metadata=(3, "", b""),
            too_large=(3, "", b""),
            no_room=(8, "", b""),
            malformed=(3, "", b""),
        )

        assert not door.bind()
