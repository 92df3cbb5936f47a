import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2

from headrace.training.v1 import training_job_pb2 as job_pb, training_service_pb2 as pb
from headrace_server.errors import Draining
from headrace_server.rpc.services.thinning import thin
from headrace_server.trainers.reports import PhaseChanged
from headrace_server.training.events import Event, StateChanged
from headrace_server.training.states import JobState
from tests.doubles.door import open_door
from tests.doubles.job_desk import NOON, JobDesk, a_job, a_step
from tests.doubles.until import until
from tests.rpc.test_predict import details_of

RUNNING = StateChanged(from_state=None, to_state=JobState.RUNNING, reason="TRAINING_STARTED")
SUCCEEDED = StateChanged(from_state=JobState.FINALIZING, to_state=JobState.SUCCEEDED, reason="MODEL_REGISTERED")


def a_running_desk(num_steps: int = 3, heartbeat_seconds: float = 30) -> JobDesk:
    desk = JobDesk(a_job(), heartbeat_seconds=heartbeat_seconds)
    desk.happen(RUNNING, state=JobState.RUNNING)
    for step in range(1, num_steps + 1):
        desk.happen(a_step(step))
    return desk


def request(after: int = 0, period: Duration | None = None) -> pb.StreamProgressRequest:
    return pb.StreamProgressRequest(name="trainingJobs/j1", after_sequence=after, min_step_period=period)


async def test_a_reader_gets_a_snapshot_then_every_event_then_the_job_as_it_ended() -> None:
    desk = a_running_desk()
    async with open_door(desk) as door:
        stream: Any = door.training.StreamProgress(request())
        frames = [await stream.read() for _ in range(5)]
        desk.happen(SUCCEEDED, state=JobState.SUCCEEDED, model_version="models/digits/versions/1")
        frames.append(await stream.read())

        assert frames[0].snapshot.state == job_pb.TrainingJob.STATE_RUNNING
        assert frames[0].snapshot.latest_sequence == 4
        assert [frame.event.sequence for frame in frames[1:]] == [1, 2, 3, 4, 5]
        assert frames[-1].event.state_changed.job.model_version == "models/digits/versions/1"
        assert await stream.read() is grpc.aio.EOF
        assert await stream.code() is grpc.StatusCode.OK


async def test_a_stream_ends_well_also_when_the_job_failed() -> None:
    desk = a_running_desk()
    desk.happen(
        StateChanged(from_state=JobState.RUNNING, to_state=JobState.FAILED, reason="TRAINER_FAILED"),
        state=JobState.FAILED,
    )
    async with open_door(desk) as door:
        frames = [frame async for frame in door.training.StreamProgress(request())]

        assert frames[-1].event.state_changed.to == job_pb.TrainingJob.STATE_FAILED


async def test_a_reader_resumes_after_its_cursor() -> None:
    desk = a_running_desk()
    desk.happen(SUCCEEDED, state=JobState.SUCCEEDED)
    async with open_door(desk) as door:
        frames = [frame async for frame in door.training.StreamProgress(request(after=3))]

        assert [frame.event.sequence for frame in frames[1:]] == [4, 5]


async def test_a_quiet_stream_beats() -> None:
    async with open_door(a_running_desk(heartbeat_seconds=0.05)) as door:
        stream: Any = door.training.StreamProgress(request(after=4))
        frames = [await stream.read() for _ in range(3)]
        stream.cancel()

        assert [frame.WhichOneof("frame") for frame in frames] == ["snapshot", "heartbeat", "heartbeat"]
        assert frames[1].heartbeat.latest_sequence == 4
        assert frames[1].heartbeat.HasField("time")


async def test_closing_a_stream_frees_its_reader_at_once() -> None:
    async with open_door(a_running_desk()) as door:
        stream: Any = door.training.StreamProgress(request())
        await stream.read()
        await until(lambda: door.desk.num_readers == 1)

        stream.cancel()

        await until(lambda: door.desk.num_readers == 0)


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (pb.StreamProgressRequest(name="jobs/j1"), grpc.StatusCode.INVALID_ARGUMENT),
        (pb.StreamProgressRequest(name="trainingJobs/nobody"), grpc.StatusCode.NOT_FOUND),
        (request(after=-1), grpc.StatusCode.INVALID_ARGUMENT),
        (request(period=Duration(seconds=-1)), grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_a_request_that_cannot_be_followed_is_refused(
    bad: pb.StreamProgressRequest, code: grpc.StatusCode
) -> None:
    async with open_door(a_running_desk()) as door:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await door.training.StreamProgress(bad).read()

        assert caught.value.code() is code


async def test_a_draining_server_says_where_to_resume() -> None:
    async with open_door(a_running_desk()) as door:
        stream: Any = door.training.StreamProgress(request())
        for _ in range(5):
            await stream.read()

        door.desk.drain()

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        info = details_of(caught.value, error_details_pb2.ErrorInfo)
        assert isinstance(info, error_details_pb2.ErrorInfo)
        assert (info.reason, info.metadata["resume_after"]) == ("SERVER_DRAINING", "4")


async def test_many_readers_see_the_same_history_and_a_slow_one_holds_up_nobody() -> None:
    desk = a_running_desk(num_steps=500)
    async with open_door(desk) as door:
        idle = door.training.StreamProgress(request())
        await idle.read()
        readers = [asyncio.ensure_future(_sequences(door.training.StreamProgress(request()))) for _ in range(20)]
        desk.happen(SUCCEEDED, state=JobState.SUCCEEDED)

        for sequences in await asyncio.gather(*readers):
            assert sequences == list(range(1, 503))
        idle.cancel()


async def _sequences(stream: AsyncIterable[pb.StreamProgressResponse]) -> list[int]:
    return [frame.event.sequence async for frame in stream if frame.HasField("event")]


async def test_thinned_steps_keep_the_newest_and_every_other_kind() -> None:
    desk = a_running_desk(num_steps=100)
    desk.happen(PhaseChanged(phase="exporting"))
    desk.happen(SUCCEEDED, state=JobState.SUCCEEDED)
    async with open_door(desk) as door:
        stream: Any = door.training.StreamProgress(request(period=Duration(seconds=60)))
        frames = [frame async for frame in stream]

        steps = [frame.event.step_completed.step for frame in frames if frame.event.HasField("step_completed")]
        assert steps == [1, 100]
        kinds = [frame.event.WhichOneof("kind") for frame in frames[1:]]
        assert kinds == ["state_changed", "step_completed", "step_completed", "phase_changed", "state_changed"]


def numbered(*happenings: object) -> list[Event]:
    return [Event.model_validate({"sequence": n, "time": NOON, "happening": h}) for n, h in enumerate(happenings, 1)]


async def test_a_held_step_is_sent_when_its_period_is_over_though_nothing_follows() -> None:
    gate = asyncio.Event()

    async def history() -> AsyncIterator[Event | None]:
        for event in numbered(a_step(1), a_step(2), a_step(3)):
            yield event
        await gate.wait()

    stream = thin(history(), 1)  # long enough for three events to come within it
    seen = [await anext(stream) for _ in range(2)]
    gate.set()

    assert [event.sequence for event in seen if event] == [1, 3]
    assert [event async for event in stream] == []


async def test_a_held_step_is_sent_before_the_stream_ends_badly() -> None:
    async def history() -> AsyncIterator[Event | None]:
        for event in numbered(a_step(1), a_step(2)):
            yield event
        raise Draining(2)

    stream = thin(history(), 60)
    seen = [await anext(stream), await anext(stream)]
    with pytest.raises(Draining):
        await anext(stream)

    assert [event.sequence for event in seen if event] == [1, 2]


async def test_heartbeats_pass_through_thinning() -> None:
    async def history() -> AsyncIterator[Event | None]:
        yield numbered(a_step(1))[0]
        yield None
        yield numbered(a_step(1), a_step(2))[1]

    seen = [event.sequence if event else None async for event in thin(history(), 60)]

    assert seen == [1, None, 2]


async def test_a_thinned_reader_who_leaves_closes_what_it_read() -> None:
    desk = a_running_desk()
    async with open_door(desk) as door:
        stream: Any = door.training.StreamProgress(request(period=Duration(seconds=60)))
        await stream.read()
        await until(lambda: desk.num_readers == 1)
        stream.cancel()
        await until(lambda: desk.num_readers == 0)


async def test_a_log_is_followed_under_the_same_rules() -> None:
    desk = a_running_desk(heartbeat_seconds=0.05)
    desk.write_line("one")
    desk.write_line("two")
    async with open_door(desk) as door:
        stream: Any = door.training.StreamLogs(pb.StreamLogsRequest(name="trainingJobs/j1", after_sequence=1))
        length = await stream.read()
        first = await stream.read()
        beat = await stream.read()
        desk.happen(SUCCEEDED, state=JobState.SUCCEEDED)
        while await stream.read() is not grpc.aio.EOF:
            pass

        assert length.heartbeat.latest_sequence == 2
        assert (first.line.sequence, first.line.text) == (2, "two")
        assert beat.heartbeat.latest_sequence == 2
