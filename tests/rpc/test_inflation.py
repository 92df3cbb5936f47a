"""Callers may compress, at whichever door, and a message that becomes too large costs no more than one that is."""

import asyncio
import gzip
import sys
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from google.rpc import error_details_pb2
from hypothesis import given, strategies as st

from headrace.inference.v1 import inference_service_pb2 as predict_pb
from headrace.training.v1 import training_service_pb2 as training_pb
from headrace.type.v1 import tensor_pb2
from headrace_server import _native
from headrace_server.rpc.inflation import inflated
from tests.doubles.door import Door, open_door
from tests.doubles.frames import dial, ending_of, headers, message
from tests.doubles.plain_service import open_passage
from tests.doubles.until import until
from tests.native.plane.messages import infer_requests, predict_requests
from tests.rpc.test_bounds import DOORS, first_of, info, refusal_of

MIB = 1 << 20
MOST = 2 << 20
PREDICT = "/headrace.inference.v1.InferenceService/Predict"
PREDICT_STREAM = "/headrace.inference.v1.InferenceService/PredictStream"
LIST_JOBS = "/headrace.training.v1.TrainingService/ListTrainingJobs"
ALGORITHMS = [grpc.Compression.Gzip, grpc.Compression.Deflate]
native_only = pytest.mark.skipif(not _native.door_built, reason="built without gRPC for C++")


SENDS_A_BOMB = """
import grpc, sys
options = [("grpc.max_send_message_length", -1)]
channel = grpc.insecure_channel(sys.argv[1], compression=grpc.Compression.Gzip, options=options)
predict = channel.unary_unary("/headrace.inference.v1.InferenceService/Predict")
for _ in range(3):
    try:
        predict(b"m" * (256 << 20), timeout=60)
    except grpc.RpcError as error:
        print(error.code().name)
"""


def a_request(num_values: int) -> predict_pb.PredictRequest:
    values = np.arange(num_values, dtype="<f4").reshape(1, -1)
    tensor = tensor_pb2.Tensor(data_type=tensor_pb2.DATA_TYPE_FP32, shape=values.shape, data=values.tobytes())
    return predict_pb.PredictRequest(model="models/echo", inputs={"x": tensor})


def channel_to(door: Door, algorithm: grpc.Compression) -> grpc.aio.Channel:
    options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    return grpc.aio.insecure_channel(f"127.0.0.1:{door.port}", compression=algorithm, options=options)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("door", DOORS)
async def test_compressed_calls_are_answered_like_others(door: str, algorithm: grpc.Compression) -> None:
    async with open_door(door=door, max_message_bytes=MOST) as opened, channel_to(opened, algorithm) as channel:
        opened.engine.release()
        ask: Any = channel.unary_unary(PREDICT)
        converse: Any = channel.stream_stream(PREDICT_STREAM)
        for num_values in (0, 1, 1000, 500_000):
            request = a_request(num_values)
            plain = await asyncio.gather(opened.inference.Predict(request), return_exceptions=True)
            packed = await asyncio.gather(ask(request.SerializeToString()), return_exceptions=True)
            assert said(packed[0]) == said(plain[0])

        stream = converse()
        await stream.write(predict_pb.PredictStreamRequest(id="a", request=a_request(1000)).SerializeToString())
        answer = predict_pb.PredictStreamResponse.FromString(await stream.read())
        assert answer.id == "a"
        stream.cancel()


def said(outcome: Any) -> Any:
    """An answer without its timing, or a refusal."""
    if isinstance(outcome, grpc.aio.AioRpcError):
        return outcome.code(), outcome.details()
    response = outcome if isinstance(outcome, predict_pb.PredictResponse) else predict_pb.PredictResponse()
    if response is not outcome:
        response.ParseFromString(outcome)
    response.ClearField("timing")
    return response


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("door", DOORS)
async def test_a_message_that_becomes_too_large_is_refused_as_one_that_is(
    door: str, algorithm: grpc.Compression
) -> None:
    request = predict_pb.PredictRequest(model="m" * MOST).SerializeToString()
    jobs = training_pb.ListTrainingJobsRequest(page_token="t" * MOST).SerializeToString()
    part = predict_pb.PredictStreamRequest(request=predict_pb.PredictRequest(model="m" * MOST)).SerializeToString()
    async with open_door(door=door, max_message_bytes=MOST) as opened, channel_to(opened, algorithm) as channel:
        opened.engine.release()
        ask: Any = channel.unary_unary(PREDICT)
        list_jobs: Any = channel.unary_unary(LIST_JOBS)
        converse: Any = channel.stream_stream(PREDICT_STREAM)
        stream = converse(iter([part]), timeout=60)
        for call in (ask(request, timeout=60), list_jobs(jobs, timeout=60), first_of(stream)):
            code, details = await refusal_of(call)

            assert code is grpc.StatusCode.INVALID_ARGUMENT
            assert details["ErrorInfo"] == info("TOO_LARGE", what="message", limit_bytes=str(MOST))
        await opened.training.ListTrainingJobs(training_pb.ListTrainingJobsRequest(), timeout=60)


@pytest.mark.parametrize("door", DOORS)
async def test_a_small_message_that_becomes_huge_costs_little(door: str) -> None:
    async with open_door(door=door, max_message_bytes=MOST) as opened:
        await opened.training.ListTrainingJobs(training_pb.ListTrainingJobsRequest())
        own = psutil.Process()
        before, most = own.memory_info().rss, 0
        words = (sys.executable, "-c", SENDS_A_BOMB, f"127.0.0.1:{opened.port}")
        sender = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
        assert sender.stdout is not None
        saying = asyncio.ensure_future(sender.stdout.read())
        while not saying.done():
            most = max(most, own.memory_info().rss)
            await asyncio.sleep(0.01)
        await sender.wait()

        assert (await saying).split() == [b"INVALID_ARGUMENT"] * 3
        assert most - before < 64 * MIB


@native_only
async def test_compressed_messages_share_one_bound(tmp_path: Path) -> None:
    content = bytes(3 * MIB)
    async with open_passage(tmp_path, max_message_bytes=4 * MIB, max_buffered_bytes=16 * MIB) as passage:
        address = f"127.0.0.1:{passage.door.port}"
        async with grpc.aio.insecure_channel(address, compression=grpc.Compression.Gzip) as channel:
            # Nobody reads them: what the door has made readable stays where it is.
            calls: list[Any] = [channel.stream_stream("/plain.Service/never_read")() for _ in range(24)]
            await asyncio.gather(*(call.write(content) for call in calls))
            refused: list[Any] = []

            def look() -> bool:
                refused[:] = [call for call in calls if call.done()]
                return bool(refused)

            await until(look)

            code, details = await refusal_of(refused[0].read())
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert details["ErrorInfo"] == info("BUFFERS_FULL", limit_bytes=str(16 * MIB))
            assert isinstance(details["RetryInfo"], error_details_pb2.RetryInfo)

            # Those who go give back what they had.
            for call in calls:
                call.cancel()
            await until(lambda: passage.door.calls_in_flight == 0)
            echo: Any = channel.unary_unary("/plain.Service/echo")
            assert await echo(content, timeout=60) == content


@native_only
async def test_who_does_not_compress_does_not_wait_for_who_does(tmp_path: Path) -> None:
    bomb = gzip.compress(bytes(60 * MIB))
    begin = headers(b"/plain.Service/echo", 1, more=((b"grpc-encoding", b"gzip"),))
    async with open_passage(tmp_path, max_message_bytes=32 * MIB) as passage:
        echo = passage.method("echo")
        await echo(b"", timeout=60)
        with ExitStack() as stack:
            for _ in range(40):  # each takes a processor a tenth of a second, or more
                line = dial(passage.door.port, begin, message(bomb, 1, is_compressed=True))
                stack.enter_context(line)
            await until(lambda: passage.door.calls_in_flight > 12)

            await echo(b"", timeout=60)

            assert passage.door.calls_in_flight > 1
            await until(lambda: passage.door.calls_in_flight == 0, 60)


NOISE = [
    b"",
    b"\x1f\x8b",
    gzip.compress(b"cut off")[:-3],
    gzip.compress(b"changed")[:-5] + b"\0\0\0\0\0",
    gzip.compress(b"followed") + b"by something",
    zlib.compress(b"of the other kind"),
]


@native_only
@pytest.mark.parametrize("noise", NOISE, ids=range(len(NOISE)))
async def test_what_is_not_compressed_as_it_says_is_refused_alone(tmp_path: Path, noise: bytes) -> None:
    async with open_passage(tmp_path) as passage:
        begin = headers(b"/plain.Service/echo", 1, more=((b"grpc-encoding", b"gzip"),))
        with dial(passage.door.port, begin, message(noise, 1, is_compressed=True)) as line:
            said_back = await asyncio.to_thread(ending_of, line, 1)
            await until(lambda: passage.door.calls_in_flight == 0)

        # An empty message is never compressed.
        assert (b"not a message" in said_back) == (noise != b"")
        assert await passage.method("echo")(b"still here", timeout=60) == b"still here"


@given(predict_requests() | infer_requests())
def test_a_message_is_left_as_it_is_and_comes_back_from_what_it_was_packed_into(request: Any) -> None:
    content = request.SerializeToString()
    limit = max(len(content), 1)

    assert inflated(content, limit) == content
    assert inflated(gzip.compress(content), limit) == content
    assert inflated(zlib.compress(content), limit) == content


@given(st.binary(max_size=300).map(lambda rest: b"\x78\x9c" + rest))
def test_a_message_that_only_begins_like_a_packed_one_is_left_as_it_is(content: bytes) -> None:
    assert inflated(content, 1000) == content


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
def test_no_more_is_made_of_a_message_than_shows_that_it_is_too_large(pack: Any) -> None:
    assert inflated(pack(bytes(100)), 100) == bytes(100)
    assert len(inflated(pack(bytes(101)), 100)) == 101
    assert len(inflated(pack(bytes(MIB)), 100)) == 101
