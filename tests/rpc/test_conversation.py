import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from headrace.inference.v1 import inference_service_pb2 as pb
from tests.doubles.door import open_door
from tests.doubles.until import until
from tests.rpc.test_predict import BYTES


def ask(request_id: str, model: str = "models/echo", **fields: Duration) -> pb.PredictStreamRequest:
    return pb.PredictStreamRequest(id=request_id, request=pb.PredictRequest(model=model, inputs={"x": BYTES}), **fields)


async def test_each_answer_carries_the_id_of_its_request_and_a_failure_is_an_answer() -> None:
    async with open_door() as door:
        requests = [ask("a"), ask("b", model="models/nobody"), ask("c", model="wrong"), ask("d")]
        answers = {answer.id: answer async for answer in door.inference.PredictStream(_each(requests))}

        assert answers.keys() == {"a", "b", "c", "d"}
        assert answers["a"].response.outputs["x"].data == BYTES.data
        assert answers["b"].error.code == grpc.StatusCode.NOT_FOUND.value[0]
        assert answers["c"].error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        assert len(answers["c"].error.details) == 2


async def test_answers_come_as_they_finish() -> None:
    async with open_door() as door:
        door.engine.hold()
        stream: Any = door.inference.PredictStream()
        await stream.write(ask("slow"))
        await door.engine.was_asked(1)
        await stream.write(ask("fast", model="models/nobody"))

        assert (await stream.read()).id == "fast"
        door.engine.release()
        assert (await stream.read()).id == "slow"


async def test_an_id_that_is_under_way_is_refused_and_may_be_used_again_afterwards() -> None:
    async with open_door() as door:
        door.engine.hold()
        stream: Any = door.inference.PredictStream()
        await stream.write(ask("a"))
        await door.engine.was_asked(1)
        await stream.write(ask("a"))

        twice = await stream.read()
        door.engine.release()
        first = await stream.read()
        await stream.write(ask("a"))
        again = await stream.read()

        assert twice.error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        assert first.HasField("response")
        assert again.HasField("response")


async def test_a_request_ends_at_its_own_timeout_and_the_stream_goes_on() -> None:
    async with open_door() as door:
        door.engine.hold()
        stream: Any = door.inference.PredictStream()
        await stream.write(ask("late", timeout=Duration(nanos=20_000_000)))
        late = await stream.read()
        door.engine.release()
        await stream.write(ask("next"))
        following = await stream.read()

        assert late.error.code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
        assert door.engine.num_left == 1
        assert following.HasField("response")


async def test_a_timeout_of_nothing_is_refused() -> None:
    async with open_door() as door:
        answers = [answer async for answer in door.inference.PredictStream(_each([ask("a", timeout=Duration())]))]

        assert answers[0].error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]


async def test_no_more_than_a_window_is_under_way() -> None:
    async with open_door(stream_window=4) as door:
        door.engine.hold()
        stream: Any = door.inference.PredictStream(_each([ask(str(n)) for n in range(10)]))
        await door.engine.was_asked(4)
        await asyncio.sleep(0.05)

        assert len(door.engine.calls) == 4
        door.engine.release()
        assert len([answer async for answer in stream]) == 10


async def test_a_caller_who_does_not_read_is_waited_for() -> None:
    big = pb.PredictStreamRequest(request=pb.PredictRequest(model="models/echo"))
    big.request.inputs["x"].CopyFrom(BYTES)
    big.request.inputs["x"].shape[:] = [1, 250_000]
    big.request.inputs["x"].data = b"\0" * 1_000_000
    async with open_door(stream_window=4) as door:
        stream: Any = door.inference.PredictStream()

        async def write() -> None:
            for n in range(200):
                big.id = str(n)
                await stream.write(big)
            await stream.done_writing()

        writing = asyncio.ensure_future(write())
        await door.engine.was_asked(4)
        last = -1
        while len(door.engine.calls) != last:  # until nothing moves any more
            last = len(door.engine.calls)
            await asyncio.sleep(0.3)

        assert last < 100
        assert len([answer async for answer in stream]) == 200
        await writing


async def test_what_is_under_way_is_answered_before_a_closing_server_ends_the_stream() -> None:
    async with open_door() as door:
        door.engine.hold()
        stream: Any = door.inference.PredictStream()
        await stream.write(ask("a"))
        await door.engine.was_asked(1)

        door.closing.set()
        door.engine.release()

        assert (await stream.read()).HasField("response")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_caller_who_hangs_up_takes_all_his_requests_with_him() -> None:
    async with open_door() as door:
        door.engine.hold()
        stream: Any = door.inference.PredictStream()
        for n in range(3):
            await stream.write(ask(str(n)))
        await door.engine.was_asked(3)

        stream.cancel()

        await until(lambda: door.engine.num_left == 3)


async def test_bytes_that_are_no_request_end_the_stream_after_its_answers() -> None:
    async with open_door() as door:
        raw: Any = door.channel.stream_stream("/headrace.inference.v1.InferenceService/PredictStream")
        stream = raw(_each_bytes([ask("a").SerializeToString(), b"\xff\xff\xff"]))

        assert pb.PredictStreamResponse.FromString(await stream.read()).id == "a"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def _each(requests: list[pb.PredictStreamRequest]) -> AsyncIterator[pb.PredictStreamRequest]:
    for request in requests:
        yield request


async def _each_bytes(requests: list[bytes]) -> AsyncIterator[bytes]:
    for request in requests:
        yield request
