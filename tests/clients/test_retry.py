from datetime import timedelta

import grpc
import pytest
from hypothesis import given, strategies as st

from headrace import Client, QueueFull, Retry, TabularTrainer, Unavailable
from headrace.channel import channel_options, service_config
from headrace.errors import HeadraceError
from headrace.evidence import Evidence
from tests.doubles.given_clock import GivenClock
from tests.doubles.refusal import Refusal
from tests.doubles.scripted_server import ScriptedServer

FULL = Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", "QUEUE_FULL", retry_after=timedelta(seconds=4))
GONE = Refusal(grpc.StatusCode.UNAVAILABLE, "Socket closed")


async def test_starting_waits_as_long_as_the_server_says_and_starts_one_job(
    client: Client, server: ScriptedServer, clock: GivenClock
) -> None:
    server.training.refusals = [FULL, FULL]

    run = await client.start_training(dataset="flowers", model="flowers", trainer=TabularTrainer(target="species"))

    assert clock.slept == [4.0, 4.0]
    assert run.name == "trainingJobs/j1"


async def test_a_start_whose_answer_got_lost_is_not_a_second_job(client: Client, server: ScriptedServer) -> None:
    server.training.lose_answers = 2

    run = await client.start_training(dataset="flowers", model="flowers", trainer=TabularTrainer(target="species"))

    assert len(server.training.requests) == 3
    assert len({request.request_id for request in server.training.requests}) == 1
    assert len(server.training.started) == 1
    assert run.name == "trainingJobs/j1"


async def test_two_starts_are_two_jobs(client: Client) -> None:
    first, second = [
        await client.start_training(dataset="flowers", model="flowers", trainer=TabularTrainer(target="species"))
        for _ in range(2)
    ]

    assert first.name != second.name


async def test_a_wait_that_does_not_fit_is_not_begun(client: Client, server: ScriptedServer, clock: GivenClock) -> None:
    server.training.refusals = [FULL]

    with pytest.raises(QueueFull) as caught:
        await client.start_training(dataset="d", model="m", trainer=TabularTrainer(target="t"), timeout=3)

    assert clock.slept == []
    assert caught.value.retry_after == timedelta(seconds=4)


async def test_attempts_have_an_end(server: ScriptedServer, clock: GivenClock) -> None:
    server.training.refusals = [GONE] * 9
    retry = Retry(attempts=3, clock=clock, jitter=lambda: 1.0)
    async with Client(server.target, retry=retry) as client:
        with pytest.raises(Unavailable):
            await client.start_training(dataset="d", model="m", trainer=TabularTrainer(target="t"))

    assert clock.slept == [0.1, 0.2]
    assert len(server.training.refusals) == 6


async def test_predictions_wait_out_overload(client: Client, server: ScriptedServer, clock: GivenClock) -> None:
    after = timedelta(milliseconds=50)
    server.inference.refusals = [Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy", "NO_PERMIT", retry_after=after)]

    await client.predict("digits", [[1.0, 2.0, 3.0]])

    assert clock.slept == [0.05]


async def test_reads_are_repeated_by_grpc_itself(client: Client, server: ScriptedServer, clock: GivenClock) -> None:
    server.training.refusals = [GONE, GONE]

    job = await client.get_training_job("j1")

    assert job.name == "trainingJobs/j1"
    assert clock.slept == []


async def test_what_must_not_happen_twice_is_not_repeated(client: Client, server: ScriptedServer) -> None:
    run = await client.training_run("j1")
    server.training.refusals = [GONE]

    with pytest.raises(Unavailable):
        await run.cancel()

    assert server.training.refusals == []
    assert server.training.cancels == []


@given(
    failures=st.integers(1, 10_000),
    jitter=st.floats(0, 1),
    asked=st.none() | st.timedeltas(timedelta(0), timedelta(hours=1)),
)
def test_waits_are_what_the_server_asks_for_else_bounded(failures: int, jitter: float, asked: timedelta | None) -> None:
    retry = Retry(jitter=lambda: jitter)
    error = HeadraceError("no", code=grpc.StatusCode.UNAVAILABLE, evidence=Evidence(retry_after=asked))

    wait = retry.wait_before_resume(failures, error)

    assert wait is not None
    if asked is not None:
        assert wait == asked.total_seconds()
    else:
        assert 0 < wait <= retry.longest_delay_seconds


def test_the_channel_repeats_reads_only_and_takes_what_the_server_takes() -> None:
    (methods,) = service_config()["methodConfig"]
    names = {name["method"] for name in methods["name"]}
    options = dict(channel_options("127.0.0.1:50051", 1 << 26))

    assert all(name.startswith(("Get", "List")) or name == "Check" for name in names)
    assert options["grpc.max_receive_message_length"] == options["grpc.max_send_message_length"] == 1 << 26
    assert options["grpc.enable_http_proxy"] == 0
    assert "grpc.enable_http_proxy" not in dict(channel_options("models.example:443", 1))
    assert dict(channel_options("[::1]:50051", 1))["grpc.enable_http_proxy"] == 0
