"""Callers who do what they should not, at either door: a clear end, and nobody else notices.

What no client library sends is sent by hand.  That both doors say the same of a request's own faults (shapes, names,
lists that do not fit together) is the business of `tests/house/test_native_answers.py`; of bytes that are no message,
that of `test_parity.py`; of what is too large or compressed, that of `test_bounds.py` and `test_inflation.py`; and what
only the native door has to fear, that of `test_hostile_callers.py`.
"""

import asyncio
import socket
import struct
import sys
from collections.abc import AsyncIterator

import numpy as np
import psutil
import pytest
from google.protobuf.message import Message

from headrace.inference.v1 import inference_service_pb2 as pb
from headrace.type.v1 import tensor_pb2
from headrace_server.rpc.open_inference import grpc_predict_v2_pb2 as oip
from tests.doubles.door import Door, open_door
from tests.doubles.frames import dial, ending_of, headers, message
from tests.doubles.idle_connections import IdleConnections
from tests.doubles.until import until
from tests.rpc.test_bounds import DOORS

MIB = 1 << 20
PREDICT = b"/headrace.inference.v1.InferenceService/Predict"
PREDICT_STREAM = b"/headrace.inference.v1.InferenceService/PredictStream"
NEVER_READS = """
import asyncio, sys
import grpc

async def main():
    question, written = sys.stdin.buffer.read(), 0

    async def keep_writing(stream):
        nonlocal written
        for _ in range(500):
            await stream.write(question)
            written += 1

    async with grpc.aio.insecure_channel(sys.argv[1], options=[("grpc.max_send_message_length", -1)]) as channel:
        writing = [asyncio.ensure_future(keep_writing(channel.stream_stream(sys.argv[2])())) for _ in range(4)]
        last = -1
        while written == 0 or last != written:  # nothing tells that nothing will happen
            last = written
            await asyncio.sleep(1)
        print(written, flush=True)
        await asyncio.wait(writing)

asyncio.run(main())
"""
INFER = b"/inference.GRPCInferenceService/ModelInfer"


@pytest.fixture(params=DOORS)
async def door(request: pytest.FixtureRequest) -> AsyncIterator[Door]:
    async with open_door(door=request.param) as opened:
        yield opened


def a_request(num_values: int = 2) -> pb.PredictRequest:
    values = np.ones((num_values // 2, 2), dtype="<f4")
    tensor = tensor_pb2.Tensor(data_type=tensor_pb2.DATA_TYPE_FP32, shape=values.shape, data=values.tobytes())
    return pb.PredictRequest(model="models/echo", inputs={"x": tensor})


async def still_answers(door: Door) -> None:
    await door.inference.Predict(a_request(), timeout=20)


def calls_in_flight(door: Door) -> float:
    return door.metrics.registry.get_sample_value("headrace_calls_in_flight") or 0


def an_infer_request() -> oip.ModelInferRequest:
    request = oip.ModelInferRequest(model_name="echo")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 2]).contents.fp32_contents.extend([1, 2])
    return request


@pytest.mark.parametrize(
    ("method", "question"),
    [
        (PREDICT, a_request()),
        (INFER, an_infer_request()),
        (PREDICT_STREAM, pb.PredictStreamRequest(id="1", request=a_request())),
    ],
    ids=["Predict", "ModelInfer", "PredictStream"],
)
async def test_a_deadline_that_has_passed_ends_a_call(door: Door, method: bytes, question: Message) -> None:
    door.engine.hold()
    begin = headers(method, 1, more=((b"grpc-timeout", b"1n"),))
    with dial(door.port, begin, message(question.SerializeToString(), 1)) as line:
        said = await asyncio.to_thread(ending_of, line, 1)
    door.engine.release()

    # The status as trailers, or, when nothing was begun, the stream's end alone.  To grpc.aio a stream whose caller is
    # late looks like one whose caller is done; nobody is left who would hear it.
    is_told_late = b"grpc-status" not in said or b"\x0bgrpc-status\x014" in said
    assert is_told_late or method == PREDICT_STREAM
    await until(lambda: calls_in_flight(door) == 0)
    await still_answers(door)


async def test_streams_that_begin_and_go_no_further_hold_nobody_up(door: Door) -> None:
    begun = [headers(PREDICT_STREAM, 2 * index + 1) for index in range(50)]
    half = [headers(PREDICT, 2 * index + 1) for index in range(50, 60)]
    with dial(door.port, *begun, *half):
        await until(lambda: calls_in_flight(door) >= 50)
        await still_answers(door)

    await until(lambda: calls_in_flight(door) == 0)


async def test_a_message_that_breaks_off_ends_with_its_connection(door: Door) -> None:
    whole = message(a_request(10_000).SerializeToString(), 1)
    with dial(door.port, headers(PREDICT, 1), whole[: len(whole) // 2]):
        await still_answers(door)

    await until(lambda: calls_in_flight(door) == 0)
    assert len(door.engine.calls) == 1


async def test_callers_that_come_and_vanish_leave_nothing(door: Door) -> None:
    await still_answers(door)
    door.engine.hold()
    num_files = psutil.Process().num_fds()
    asked = headers(PREDICT, 1) + message(a_request().SerializeToString(), 1)
    for index in range(100):
        line = dial(door.port, *([asked] if index % 2 else []))
        line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, not an end
        line.close()

    await until(lambda: psutil.Process().num_fds() <= num_files + 4)
    await until(lambda: calls_in_flight(door) == 0)
    door.engine.release()
    await still_answers(door)


async def test_a_caller_that_stops_reading_costs_little_and_holds_nobody_up(door: Door) -> None:
    await still_answers(door)
    question = pb.PredictStreamRequest(request=a_request(MIB // 4)).SerializeToString()
    before = psutil.Process().memory_info().rss
    # In a process of its own, because what its library keeps for it is not the server's.
    words = (sys.executable, "-c", NEVER_READS, f"127.0.0.1:{door.port}", PREDICT_STREAM.decode())
    pipe = asyncio.subprocess.PIPE
    writer = await asyncio.create_subprocess_exec(*words, stdin=pipe, stdout=pipe)
    assert writer.stdin is not None
    assert writer.stdout is not None
    writer.stdin.write(question)
    writer.stdin.write_eof()
    try:
        num_written = int(await asyncio.wait_for(writer.stdout.readline(), 60))
        grown = psutil.Process().memory_info().rss - before

        await still_answers(door)
        assert (
            num_written < 400
        )  # of 2,000 messages of 1 MiB: 4 under way and 4 MiB unread a stream, and its own library's
        assert grown < 512 * MIB  # what the allocator keeps of messages that went by is in this
    finally:
        writer.kill()
        await writer.wait()
    await until(lambda: calls_in_flight(door) == 0)


async def test_a_thousand_idle_connections_hold_nobody_up(door: Door) -> None:
    with await asyncio.to_thread(IdleConnections, door.port, 1000) as crowd:
        await still_answers(door)
        assert crowd.num_open() == 1000
    await still_answers(door)
