import asyncio
from contextlib import AsyncExitStack, aclosing
from datetime import timedelta

import grpc
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from headrace import (
    Client,
    CursorExpired,
    EvaluationCompleted,
    HeadraceError,
    IllegalTransition,
    Interruption,
    JobNotFound,
    Retry,
    ServerFault,
    StateChanged,
    StepCompleted,
    TrainingCancelled,
    TrainingFailed,
    Unavailable,
)
from headrace.training.v1.training_job_pb2 import TrainingJob
from headrace.training.v1.training_service_pb2 import CancelTrainingJobRequest
from headrace_server.worker.ports import free_port
from tests.doubles.given_clock import GivenClock
from tests.doubles.refusal import Refusal
from tests.doubles.scripted_server import ScriptedServer
from tests.doubles.scripted_training import history
from tests.doubles.until import until

State = TrainingJob.State


async def test_following_yields_every_event_once_and_ends_with_the_job(client: Client, server: ScriptedServer) -> None:
    run = await client.training_run("j1")

    events = [event async for event in run.follow()]

    assert [event.sequence for event in events] == [entry.sequence for entry in server.training.entries]
    assert events[-1].ends_the_job
    assert run.job.state == State.STATE_SUCCEEDED
    assert run.job.model_version == "models/digits/versions/1"


async def test_events_can_be_matched_on(client: Client) -> None:
    run = await client.training_run("trainingJobs/j1")
    seen = set()

    async for event in run.follow():
        match event.content:
            case StepCompleted(loss=loss) if loss > 0:
                seen.add("step")
            case EvaluationCompleted(metrics=metrics):
                seen.add(f"evaluation of {', '.join(sorted(metrics))}")
            case StateChanged(to=State.STATE_SUCCEEDED):
                seen.add("end")

    assert seen == {"step", "evaluation of accuracy, loss", "end"}


@pytest.mark.parametrize("cut_after", range(len(history()) + 1))
async def test_a_cut_after_any_event_leaves_no_gap_and_no_repeat(
    cut_after: int, client: Client, server: ScriptedServer
) -> None:
    server.training.cuts = [cut_after]
    run = await client.training_run("j1")

    sequences = [event.sequence async for event in run.follow()]

    assert sequences == list(range(1, len(history()) + 1))
    assert server.training.cursors == [0, cut_after]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, 4), min_size=20, max_size=20), after=st.integers(0, 30))
async def test_twenty_random_cuts_leave_no_gap_and_no_repeat(cuts: list[int], after: int, clock: GivenClock) -> None:
    server = ScriptedServer()
    server.training.entries = history(num_steps=24)
    server.training.cuts = list(cuts)
    async with server.listen(), Client(server.target, retry=Retry(clock=clock, reconnect_seconds=1e9)) as client:
        run = await client.training_run("j1")

        sequences = [event.sequence async for event in run.follow(after)]

    assert sequences == list(range(after + 1, len(server.training.entries) + 1))


async def test_following_outlives_a_restart_of_the_server() -> None:
    server = ScriptedServer()
    server.training.has_ended = False
    server.training.entries = history()[:5]
    port = free_port()  # it is given up in between, and no connection may get it then
    seen: list[int] = []
    interruptions: list[Interruption] = []

    async def follow(client: Client) -> None:
        run = await client.training_run("j1")
        async for event in run.follow(on_interruption=interruptions.append):
            seen.append(event.sequence)  # noqa: PERF401 - looked at while it grows

    async with asyncio.TaskGroup() as tasks, AsyncExitStack() as stack:
        async with server.listen(port):
            client = await stack.enter_async_context(Client(server.target))
            following = tasks.create_task(follow(client))
            await until(lambda: len(seen) == 5)
        await until(lambda: len(interruptions) > 1)
        server.training.entries, server.training.has_ended = history(), True
        async with server.listen(port):
            await following

    assert seen == list(range(1, len(history()) + 1))


async def test_a_wait_that_the_server_asks_for_is_kept(
    client: Client, server: ScriptedServer, clock: GivenClock
) -> None:
    server.training.cuts = [3]
    server.training.cut_with = Refusal(
        grpc.StatusCode.UNAVAILABLE,
        "the server is shutting down; resume after 3",
        "SERVER_DRAINING",
        {"resume_after": "3"},
        retry_after=timedelta(seconds=7),
    )
    run = await client.training_run("j1")

    sequences = [event.sequence async for event in run.follow()]

    assert sequences == list(range(1, len(history()) + 1))
    assert clock.slept == [7.0]


async def test_a_hint_beyond_what_arrived_does_not_open_a_gap(client: Client, server: ScriptedServer) -> None:
    server.training.cuts = [3]
    metadata = {"resume_after": "9"}
    server.training.cut_with = Refusal(grpc.StatusCode.UNAVAILABLE, "draining", "SERVER_DRAINING", metadata)
    run = await client.training_run("j1")

    sequences = [event.sequence async for event in run.follow()]

    assert sequences == list(range(1, len(history()) + 1))


async def test_waits_grow_while_nothing_arrives_and_the_error_is_raised_in_the_end(
    server: ScriptedServer, clock: GivenClock
) -> None:
    retry = Retry(clock=clock, jitter=lambda: 1.0, reconnect_seconds=10)
    interruptions: list[Interruption] = []
    async with Client(server.target, retry=retry) as client:
        run = await client.training_run("j1")
        server.training.cuts = [0] * 100

        with pytest.raises(Unavailable, match="Socket closed"):
            _ = [event async for event in run.follow(on_interruption=interruptions.append)]

    assert clock.slept == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2]
    assert [interruption.failures for interruption in interruptions] == [1, 2, 3, 4, 5, 6]


async def test_heartbeats_count_as_news_however_long_the_job_is_quiet(
    server: ScriptedServer, clock: GivenClock
) -> None:
    server.training.has_ended = False
    server.training.entries = history()[:2]
    seen: list[int] = []
    async with Client(server.target, retry=Retry(clock=clock)) as client, asyncio.TaskGroup() as tasks:
        run = await client.training_run("j1")

        async def follow() -> None:
            async for event in run.follow():
                seen.append(event.sequence)  # noqa: PERF401 - looked at while it grows

        following = tasks.create_task(follow())
        await until(lambda: len(seen) == 2)
        clock.now += 10_000  # hours of heartbeats
        server.training.has_ended = True
        server.training.entries = history()
        await following

    assert seen == list(range(1, len(history()) + 1))


@pytest.mark.parametrize(
    ("refusal", "kind"),
    [
        (Refusal(grpc.StatusCode.OUT_OF_RANGE, "no longer kept", "CURSOR_EXPIRED"), CursorExpired),
        (Refusal(grpc.StatusCode.NOT_FOUND, "gone", "TRAINING_JOB_NOT_FOUND"), JobNotFound),
        (Refusal(grpc.StatusCode.INTERNAL, "a fault", "INTERNAL", {"error_id": "e3b0"}), ServerFault),
        (Refusal(grpc.StatusCode.UNIMPLEMENTED, "Method not found!"), ServerFault),
    ],
)
async def test_what_reopening_cannot_help_is_raised_at_once(
    refusal: Refusal, kind: type[HeadraceError], client: Client, server: ScriptedServer, clock: GivenClock
) -> None:
    run = await client.training_run("j1")
    server.training.refusals = [refusal]

    with pytest.raises(kind) as caught:
        _ = [event async for event in run.follow()]

    assert caught.value.code is refusal.code
    assert clock.slept == []


async def test_a_stream_that_falls_silent_is_opened_again(server: ScriptedServer, clock: GivenClock) -> None:
    server.training.has_ended = False
    server.training.entries = history()[:2]
    server.training.heartbeat_seconds = 3600
    interruptions: list[Interruption] = []
    retry = Retry(clock=clock, silence_seconds=0.2)
    async with Client(server.target, retry=retry) as client, asyncio.TaskGroup() as tasks:
        run = await client.training_run("j1")

        async def follow() -> None:
            async for _ in run.follow(on_interruption=interruptions.append):
                pass

        following = tasks.create_task(follow())
        await until(lambda: bool(interruptions))
        server.training.entries, server.training.has_ended = history(), True
        await following

    assert "silent" in str(interruptions[0].error)


async def test_following_a_finished_job_from_its_end_ends_at_once(client: Client) -> None:
    run = await client.training_run("j1")

    assert [event async for event in run.follow(run.job.latest_sequence)] == []


async def test_leaving_the_loop_hangs_up(client: Client, server: ScriptedServer) -> None:
    server.training.has_ended = False
    run = await client.training_run("j1")

    async with aclosing(run.follow()) as events:
        async for _ in events:
            break

    await until(lambda: server.training.readers == 0)


async def test_waiting_returns_the_finished_job(client: Client, server: ScriptedServer) -> None:
    server.training.has_ended = False
    run = await client.training_run("j1")
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(run.wait())
        await until(lambda: server.training.readers == 1)
        server.training.entries.append(history()[-1])
        server.training.has_ended = True

    assert waiting.result().model_version == "models/digits/versions/1"


async def test_waiting_for_a_failed_job_raises_its_evidence(client: Client, server: ScriptedServer) -> None:
    server.training.entries = history(ending=State.STATE_FAILED)
    run = await client.training_run("j1")

    with pytest.raises(TrainingFailed, match="its worker died 4 times") as caught:
        await run.wait()

    assert caught.value.reason == "WORKER_LOST"
    assert caught.value.metadata["signal"] == "SIGKILL"
    assert caught.value.job.state == State.STATE_FAILED


async def test_waiting_for_a_cancelled_job_says_why(client: Client, server: ScriptedServer) -> None:
    server.training.entries = history(ending=State.STATE_CANCELLED)
    run = await client.training_run("j1")

    with pytest.raises(TrainingCancelled, match="no longer needed"):
        await run.wait()


async def test_waiting_gives_up_in_time_and_leaves_the_job_alone(client: Client, server: ScriptedServer) -> None:
    server.training.has_ended = False
    run = await client.training_run("j1")

    with pytest.raises(TimeoutError, match="still RUNNING"):
        await run.wait(timeout=0.2)

    assert server.training.cancels == []
    await until(lambda: server.training.readers == 0)


async def test_cancelling_says_how_and_why(client: Client, server: ScriptedServer) -> None:
    server.training.has_ended = False
    run = await client.training_run("j1")

    job = await run.cancel(kill=True, reason="wrong data")

    assert job.state == State.STATE_CANCELLING == run.job.state
    assert server.training.cancels[0].mode == CancelTrainingJobRequest.Mode.MODE_KILL
    assert server.training.cancels[0].reason == "wrong data"


async def test_pausing_and_resuming_return_the_new_state(client: Client, server: ScriptedServer) -> None:
    server.training.has_ended = False
    run = await client.training_run("j1")
    with pytest.raises(IllegalTransition, match="it is RUNNING"):
        await run.resume()

    paused = await run.pause(reason="later")
    resumed = await run.resume()

    assert paused.state == State.STATE_PAUSING
    assert server.training.pauses[0].reason == "later"
    assert resumed.state == State.STATE_QUEUED == run.job.state


async def test_pausing_can_wait_until_the_job_rests(client: Client, server: ScriptedServer) -> None:
    server.training.has_ended = False
    run = await client.training_run("j1")
    async with asyncio.TaskGroup() as tasks:
        pausing = tasks.create_task(run.pause(wait=True))
        await until(lambda: server.training.readers == 1)
        assert not pausing.done()
        rests = history(ending=State.STATE_PAUSED)[-1]
        rests.sequence = len(server.training.entries) + 1
        server.training.entries.append(rests)
        server.training.has_ended = True

    assert pausing.result().state == State.STATE_PAUSED


async def test_deleting_names_the_job(client: Client, server: ScriptedServer) -> None:
    run = await client.training_run("j1")

    await run.delete()

    assert server.training.deleted == ["trainingJobs/j1"]


@pytest.mark.parametrize("cut_after", range(6))
async def test_logs_outlive_a_cut_after_any_line(cut_after: int, client: Client, server: ScriptedServer) -> None:
    server.training.cuts = [cut_after]
    run = await client.training_run("j1")

    lines = [line.text async for line in run.logs()]

    assert lines == [f"line {n}" for n in range(1, 6)]


async def test_the_log_so_far_ends_while_the_job_goes_on(client: Client, server: ScriptedServer) -> None:
    server.training.has_ended = False
    run = await client.training_run("j1")

    lines = [line.text async for line in run.logs(after=2, follow=False)]

    assert lines == ["line 3", "line 4", "line 5"]
