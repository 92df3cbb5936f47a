"""Callers who mean ill, or have gone away in the middle: a clear end, bounded memory, and nobody else notices."""

import asyncio
import socket
import struct
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from google.rpc import error_details_pb2, status_pb2

from headrace_server import _native
from tests.doubles.frames import dial, frame, headers
from tests.doubles.idle_connections import EMPTY_SETTINGS, PREFACE, IdleConnections, most_connections
from tests.doubles.plain_service import Passage, open_passage
from tests.doubles.until import until

pytestmark = pytest.mark.skipif(not _native.door_built, reason="built without gRPC for C++")

MIB = 1 << 20


@pytest.fixture
async def passage(tmp_path: Path) -> AsyncIterator[Passage]:
    async with open_passage(tmp_path) as opened:
        yield opened


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """The reason in its ErrorInfo."""
    metadata: dict[str, Any] = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(metadata["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return str(info.reason)


async def still_answers(passage: Passage) -> None:
    assert await passage.method("echo")(b"still here", timeout=60) == b"still here"


def is_hung_up(line: socket.socket) -> bool:
    """Whether the door has ended the connection; reads what it said before."""
    line.settimeout(60)
    try:
        while line.recv(1 << 16):
            pass
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize(
    "noise",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0" * 1000,
        PREFACE + b"\xff" * 100,
        PREFACE + EMPTY_SETTINGS + frame(0, 0, 0, b"data of no stream"),
        PREFACE + EMPTY_SETTINGS + frame(8, 0, 0, b"\0\0\0\0"),
        PREFACE + EMPTY_SETTINGS + frame(1, 4, 1, b"\xff" * 40),
    ],
)
async def test_noise_is_hung_up_on(passage: Passage, noise: bytes) -> None:
    with socket.create_connection(("127.0.0.1", passage.door.port), 30) as line:
        line.sendall(noise)
        line.shutdown(socket.SHUT_WR)
        assert await asyncio.to_thread(is_hung_up, line)

    await still_answers(passage)


async def test_connections_that_come_and_vanish_leave_nothing(passage: Passage) -> None:
    await still_answers(passage)
    num_files = psutil.Process().num_fds()
    for index in range(200):
        line = dial(passage.door.port, *([headers(b"/plain.Service/wait", 1)] if index % 2 else []))
        line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, index % 3))
        line.close()

    await still_answers(passage)
    await until(lambda: psutil.Process().num_fds() <= num_files + 4)
    await until(lambda: passage.door.calls_in_flight == 0)


async def test_calls_that_begin_and_go_no_further_hold_nobody_up(passage: Passage) -> None:
    begun = [headers(b"/plain.Service/sum", 2 * index + 1) for index in range(50)]
    with dial(passage.door.port, *begun):
        await until(lambda: passage.door.calls_in_flight == 50)
        await still_answers(passage)

    await until(lambda: passage.door.calls_in_flight == 0)


SENDS_MUCH = """
import grpc, sys
channel = grpc.insecure_channel(sys.argv[1], options=[("grpc.max_send_message_length", -1)])
try:
    channel.unary_unary("/plain.Service/echo")(b"x" * (600 << 20), timeout=60)
except grpc.RpcError as error:
    print(error.code().name)
"""


@pytest.mark.slow
async def test_a_huge_message_is_refused_and_never_held_as_a_whole(tmp_path: Path) -> None:
    async with open_passage(tmp_path, max_buffered_bytes=64 * MIB) as passage:
        await still_answers(passage)
        own = psutil.Process()
        before, most = own.memory_info().rss, 0
        words = (sys.executable, "-c", SENDS_MUCH, f"127.0.0.1:{passage.door.port}")
        sender = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
        while sender.returncode is None:
            most = max(most, own.memory_info().rss)
            await asyncio.sleep(0.02)
        assert sender.stdout is not None
        said = await sender.stdout.read()

        # Refused as what it is, or, when too much waits, with the connection.
        assert said.strip() in (b"INVALID_ARGUMENT", b"RESOURCE_EXHAUSTED", b"UNAVAILABLE")
        assert most - before < 256 * MIB
        await still_answers(passage)
        await until(lambda: passage.door.calls_in_flight == 0)


@pytest.mark.parametrize(
    "metadata",
    [[(f"x-{index}", "v" * 100) for index in range(1000)], [("x-long", "v" * 100_000)]],
    ids=["many fields", "one long field"],
)
async def test_a_flood_of_metadata_is_refused_alone(passage: Passage, metadata: list[tuple[str, str]]) -> None:
    other = passage.method("wait")(b"")
    await passage.service.waiting.wait()

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await passage.method("echo")(b"", metadata=metadata, timeout=60)

    assert reason_of(caught.value) == "TOO_LARGE"
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    passage.service.go_on.set()
    await other  # over the same connection
    await still_answers(passage)


async def test_metadata_up_to_what_gives_a_clear_answer_arrives(passage: Passage) -> None:
    await passage.method("echo")(b"", metadata=[("other-long", "v" * 12_000)])

    assert len(str(passage.service.metadata[0]["other-long"])) == 12_000


async def test_readers_who_stop_reading_cost_little_and_hold_nobody_up(passage: Passage) -> None:
    await still_answers(passage)
    before = psutil.Process().memory_info().rss
    calls: list[Any] = [passage.method("flood")(b"%d" % MIB) for _ in range(8)]
    for call in calls:
        await call.read()
    last = -1
    while last != passage.service.num_written:
        last = passage.service.num_written
        await asyncio.sleep(0.5)  # nothing tells that nothing will happen

    await still_answers(passage)
    assert psutil.Process().memory_info().rss - before < 8 * 64 * MIB  # caller, door and service are all in here

    for call in calls:
        call.cancel()
    await until(lambda: passage.door.calls_in_flight == 0)


async def test_thousands_of_idle_connections_are_cheap_and_hold_nobody_up(passage: Passage) -> None:
    most = min(10_000, most_connections() // 2)  # both ends are open files of this process
    port = passage.door.port
    with await asyncio.to_thread(IdleConnections, port, 20):  # what the first of them costs once
        own = psutil.Process()
        before = own.memory_info().rss
        with await asyncio.to_thread(IdleConnections, port, most) as crowd:
            await still_answers(passage)
            assert own.memory_info().rss - before < most * 60_000  # of both ends
            assert crowd.num_open() == most
    await still_answers(passage)


async def test_a_deadline_that_has_passed_ends_a_call_at_once(passage: Passage) -> None:
    with dial(passage.door.port, headers(b"/plain.Service/wait", 1, more=((b"grpc-timeout", b"0n"),))):
        await asyncio.sleep(0.2)  # whenever it ends, nothing is left of it
        await until(lambda: passage.door.calls_in_flight == 0)

    await still_answers(passage)
