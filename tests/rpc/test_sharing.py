"""Readers who read along behind the native door: one stream of the complete server for all of them."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2

from headrace.training.v1 import training_service_pb2 as pb
from headrace_server import _native
from headrace_server.errors import CursorExpired
from headrace_server.rpc.services.sharing import (
    AFTER,
    BACKLOG_ENTRIES,
    MAY_SHARE,
    SHARED,
    Kind,
    shared_entries,
    shared_frame,
)
from headrace_server.trainers.reports import PhaseChanged
from headrace_server.training.states import JobState
from tests.doubles.door import Door, open_door
from tests.doubles.job_desk import a_step
from tests.doubles.until import until
from tests.rpc.test_predict import details_of
from tests.rpc.test_progress import SUCCEEDED, a_running_desk, request

NUM_READERS = 30

needs_native_door = pytest.mark.skipif(not _native.door_built, reason="built without gRPC for C++")


async def frames_of(stream: Any) -> list[pb.StreamProgressResponse]:
    return [frame async for frame in stream]


def places(frames: list[pb.StreamProgressResponse]) -> list[int]:
    return [frame.event.sequence for frame in frames if frame.HasField("event")]


@needs_native_door
async def test_readers_of_one_job_share_one_stream_and_see_all_of_it() -> None:
    desk = a_running_desk(num_steps=300)
    async with open_door(desk, door="native") as door:
        readers = [
            asyncio.ensure_future(frames_of(door.training.StreamProgress(request()))) for _ in range(NUM_READERS)
        ]
        late = asyncio.ensure_future(frames_of(door.training.StreamProgress(request(after=290))))
        await until(lambda: desk.num_readers == 1)
        for step in range(301, 310):
            desk.happen(a_step(step))
            await asyncio.sleep(0)
        desk.happen(SUCCEEDED, state=JobState.SUCCEEDED, model_version="models/digits/versions/1")

        for frames in await asyncio.gather(*readers):
            assert frames[0].HasField("snapshot")
            assert places(frames) == list(range(1, 312))
            assert frames[-1].event.state_changed.job.model_version == "models/digits/versions/1"
        assert places(await late) == list(range(291, 312))
        await until(lambda: desk.num_readers == 0)


@needs_native_door
async def test_whoever_asked_for_fewer_steps_reads_along_too() -> None:
    desk = a_running_desk(num_steps=100)
    async with open_door(desk, door="native") as door:
        whole = asyncio.ensure_future(frames_of(door.training.StreamProgress(request())))
        thinned = asyncio.ensure_future(frames_of(door.training.StreamProgress(request(period=Duration(seconds=60)))))
        await until(lambda: desk.num_readers == 1)
        desk.happen(PhaseChanged(phase="exporting"))
        desk.happen(SUCCEEDED, state=JobState.SUCCEEDED)

        assert places(await whole) == list(range(1, 104))
        frames = await thinned
        steps = [frame.event.step_completed.step for frame in frames if frame.event.HasField("step_completed")]
        assert steps == [1, 100]
        kinds = [frame.event.WhichOneof("kind") for frame in frames[1:]]
        assert kinds == ["state_changed", "step_completed", "step_completed", "phase_changed", "state_changed"]


@needs_native_door
async def test_each_of_them_is_told_where_to_resume_and_under_which_id_it_is_found() -> None:
    desk = a_running_desk()
    async with open_door(desk, door="native") as door:
        streams = [
            door.training.StreamProgress(request(), metadata=(("x-request-id", f"reader-{number}"),))
            for number in range(3)
        ]
        for stream in streams:
            for _ in range(5):
                await stream.read()

        desk.drain()

        for number, stream in enumerate(streams):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stream.read()
            info = details_of(caught.value, error_details_pb2.ErrorInfo)
            assert isinstance(info, error_details_pb2.ErrorInfo)
            assert (info.reason, info.metadata["resume_after"]) == ("SERVER_DRAINING", "4")
            trailers = [value for key, value in caught.value.trailing_metadata() if key == "x-request-id"]
            assert trailers == [f"reader-{number}"]


async def say(door: Door, key: str, value: str) -> pb.StreamProgressResponse:
    """What a caller from outside is told first who claims to be the door."""
    stream: Any = door.training.StreamProgress(request(), metadata=((key, value),))
    first = await stream.read()
    stream.cancel()
    assert isinstance(first, pb.StreamProgressResponse)
    return first


@pytest.mark.parametrize("kind", [pytest.param("native", marks=needs_native_door), "grpc_aio"])
@pytest.mark.parametrize(("key", "value"), [(SHARED, "2"), (AFTER, "2"), (MAY_SHARE, "1"), (SHARED, "nonsense")])
async def test_callers_cannot_speak_for_the_door(kind: str, key: str, value: str) -> None:
    async with open_door(a_running_desk(), door=kind) as door:
        assert (await say(door, key, value)).HasField("snapshot")


async def test_a_shared_stream_begins_before_its_first_reader_and_with_what_is_kept() -> None:
    asked: list[int] = []

    async def follow(after: int) -> AsyncIterator[int | None]:
        asked.append(after)
        if 0 < after < 900:
            raise CursorExpired(after, 900)
        for entry in (900, 901, None):
            yield entry

    assert [entry async for entry in shared_entries(follow, 1000)] == [900, 901, None]
    assert asked == [1000 - BACKLOG_ENTRIES, 0]


async def test_a_shared_stream_that_falls_behind_ends_and_does_not_begin_anew() -> None:
    async def follow(after: int) -> AsyncIterator[int | None]:
        yield after + 1
        raise CursorExpired(after, 900)

    with pytest.raises(CursorExpired):
        assert [entry async for entry in shared_entries(follow, 1000)]


def test_a_shared_message_begins_with_its_place_and_kind() -> None:
    assert shared_frame(Kind.STEP, 5, b"frame") == bytes((5 * 4 + 2, 0, 0, 0, 0, 0, 0, 0)) + b"frame"
