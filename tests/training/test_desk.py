"""The desk as its callers see it: ids, lists, limits, readers."""

import asyncio
from pathlib import Path

import pytest

from headrace_server.errors import (
    CursorAhead,
    CursorExpired,
    InvalidPageToken,
    InvalidSpec,
    JobNotFound,
    NameTaken,
    QueueFull,
    RequestIdReused,
)
from headrace_server.names import JobName
from headrace_server.pages import PageRequest
from headrace_server.training.events import LogLine, LogSource
from headrace_server.training.job import Job
from headrace_server.training.session import Outcome, TrainerEnded
from headrace_server.training.states import JobState
from tests.doubles.scripted_workers import ScriptedWorker, a_step, finish
from tests.doubles.training_house import PATIENT, TrainingHouse, training_house


async def wait(worker: ScriptedWorker) -> None:
    """Train until told to stop."""
    await worker.train(range(1, 2))
    await worker.stopped.wait()
    await worker.end(TrainerEnded(Outcome.STOPPED, exit_code=0))


async def test_the_same_request_id_with_another_body_is_refused(tmp_path: Path) -> None:
    async with training_house(tmp_path, wait) as house:
        first = await house.start(request_id="r", body_digest="a")

        with pytest.raises(RequestIdReused) as refusal:
            await house.start(request_id="r", body_digest="b")

        assert refusal.value.metadata == {"request_id": "r", "existing": str(first.name)}


async def test_the_same_request_is_answered_even_when_it_could_not_be_admitted_any_more(tmp_path: Path) -> None:
    settings = PATIENT.model_copy(update={"queue_limit": 1})
    async with training_house(tmp_path, wait, settings) as house:
        first = await house.start(request_id="r")
        await house.reached(first, JobState.RUNNING)
        await house.start()
        await house.catalog.delete("flowers")

        again = await house.start(request_id="r")

        assert again.id == first.id
        assert again.state is JobState.RUNNING


async def test_a_chosen_id_belongs_to_one_job(tmp_path: Path) -> None:
    async with training_house(tmp_path, wait) as house:
        outcomes = await asyncio.gather(*(house.start(job_id="mine") for _ in range(5)), return_exceptions=True)

        assert sum(isinstance(outcome, Job) for outcome in outcomes) == 1
        assert sum(isinstance(outcome, NameTaken) for outcome in outcomes) == 4


async def test_a_full_queue_keeps_nothing(tmp_path: Path) -> None:
    settings = PATIENT.model_copy(update={"queue_limit": 2})
    async with training_house(tmp_path, wait, settings) as house:
        running = await house.start()
        await house.reached(running, JobState.RUNNING)
        await house.start()
        await house.start()

        with pytest.raises(QueueFull):
            await house.start(job_id="surplus")

        with pytest.raises(JobNotFound):
            await house.desk.get(JobName("surplus"))
        assert house.metrics.queued_jobs._value.get() == 2
        assert house.metrics.active_jobs._value.get() == 1


async def test_no_more_jobs_run_than_may(tmp_path: Path) -> None:
    settings = PATIENT.model_copy(update={"max_running_jobs": 2})
    most = 0

    async def count(worker: ScriptedWorker) -> None:
        nonlocal most
        most = max(most, sum(other.is_alive for other in worker._launcher.workers.values()))
        await finish(worker)

    async with training_house(tmp_path, count, settings) as house:
        jobs = [await house.start(model=f"models/m{number}") for number in range(6)]
        for job in jobs:
            assert (await house.over(job)).state is JobState.SUCCEEDED

    assert 1 <= most <= 2


async def test_a_caller_who_hangs_up_while_starting_leaves_a_whole_job_or_none(tmp_path: Path) -> None:
    async with training_house(tmp_path) as house:
        for number in range(8):
            call = asyncio.ensure_future(house.start(request_id=f"r{number}", job_id=f"j{number}"))
            for _ in range(number * 4):
                await asyncio.sleep(0)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            job = await house.start(request_id=f"r{number}", job_id=f"j{number}")

            assert (await house.over(job)).state is JobState.SUCCEEDED


async def test_lists_are_newest_first_and_in_pages(tmp_path: Path) -> None:
    async with training_house(tmp_path, wait) as house:
        for number in range(7):
            await house.start(job_id=f"j{number}")

        seen, token = [], ""
        while True:
            page = await house.desk.list(PageRequest.parse(3, token, "list", ""), "")
            seen.append([job.id for job in page.items])
            token = page.next_token
            if not token:
                break

        assert seen == [["j6", "j5", "j4"], ["j3", "j2", "j1"], ["j0"]]


async def test_lists_can_be_filtered(tmp_path: Path) -> None:
    async with training_house(tmp_path, wait) as house:
        running = await house.start(job_id="a", labels={"team": "green", "note": 'say "hi"'})
        await house.reached(running, JobState.RUNNING)
        await house.start(job_id="b", labels={"team": "blue"}, model="models/other")
        cancelled = await house.start(job_id="c", labels={"team": "green", "a.b": "1"})
        await house.desk.cancel(cancelled.name, kill=False, reason="")

        async def found(text: str) -> list[str]:
            page = await house.desk.list(PageRequest.parse(0, "", "list", text), text)
            return [job.id for job in page.items]

        assert await found("state = RUNNING") == ["a"]
        assert await found("model = models/flowers") == ["c", "a"]
        assert await found("dataset = datasets/flowers") == ["c", "b", "a"]
        assert await found(f"dataset = {running.spec.dataset}") == ["c", "b", "a"]
        assert await found("dataset = datasets/flowers/versions/0123456789abcdef") == []
        assert await found("labels.team = green") == ["c", "a"]
        assert await found('labels.note = "say \\"hi\\""') == ["a"]
        assert await found("labels.a.b = 1 AND labels.team = green") == ["c"]
        assert await found("labels.team = green AND state = CANCELLED") == ["c"]
        assert await found("labels.nobody = x") == []
        with pytest.raises(InvalidSpec):
            await found("owner = me")
        with pytest.raises(InvalidPageToken):
            await house.desk.list(PageRequest(3, "not a key of this list", ""), "")


async def test_a_data_set_is_in_use_as_long_as_a_job_is_not_over(tmp_path: Path) -> None:
    async with training_house(tmp_path, wait) as house:
        job = await house.start()

        user = await house.desk.live_job_using("flowers")
        await house.desk.cancel(job.name, kill=True, reason="")
        await house.over(job)

        assert user is not None
        assert user.id == job.id
        assert await house.desk.live_job_using("flowers") is None
        assert await house.desk.live_job_using("nothing") is None


async def test_a_job_whose_data_set_is_gone_fails_and_says_so(tmp_path: Path) -> None:
    async with training_house(tmp_path, wait) as house:
        first = await house.start()
        second = await house.start()
        await house.catalog.delete("flowers")
        await house.desk.cancel(first.name, kill=True, reason="")

        over = await house.over(second)

        assert over.state is JobState.FAILED
        assert over.failure is not None
        assert over.failure.reason == "DATASET_NOT_FOUND"


async def test_readers_of_nothing_are_refused(tmp_path: Path) -> None:
    async with training_house(tmp_path, wait) as house:
        job = await house.start()
        await house.reached(job, JobState.RUNNING)

        with pytest.raises(JobNotFound):
            await anext(house.desk.follow(JobName("nobody"), 0))
        with pytest.raises(JobNotFound):
            await house.desk.latest(JobName("nobody"), "events")
        with pytest.raises(CursorAhead):
            await anext(house.desk.follow(job.name, 999))
        with pytest.raises(CursorAhead):
            await anext(house.desk.follow_logs(job.name, 999))
        assert house.metrics.journal_readers.labels("events")._value.get() == 0


async def test_quiet_readers_are_told_that_the_server_lives(tmp_path: Path) -> None:
    house = TrainingHouse(tmp_path, wait)
    house.quiet_seconds = 0.05
    await house.build()
    try:
        job = await house.start()
        seen = []
        async for event in house.desk.follow(job.name, 0):
            seen.append(event)
            if event is None:
                break
        assert seen[-1] is None
        assert len(seen) > 1
    finally:
        await house.close()


async def test_the_oldest_entries_go_when_there_are_too_many(tmp_path: Path) -> None:
    async def talk(worker: ScriptedWorker) -> None:
        for start in range(1, 400, 50):
            await worker.say(*(a_step(step) for step in range(start, start + 50)))
        lines = (LogLine(source=LogSource.STDOUT, text=f"{number} " + "x" * 9000) for number in range(300))
        await worker.say(*lines)
        await finish(worker)

    settings = PATIENT.model_copy(update={"keep_events": 100, "keep_log_lines": 200})
    async with training_house(tmp_path, talk, settings) as house:
        job = await house.start()
        over = await house.over(job)
        events = await house.history(job)
        lines = [entry async for entry in house.desk.follow_logs(job.name, 0) if entry is not None]

        assert over.oldest_sequence > 1
        assert [event.sequence for event in events] == list(range(over.oldest_sequence, over.latest_sequence + 1))
        assert 100 <= len(events) <= 110
        assert 200 <= len(lines) <= 220
        assert lines[-1].sequence == 303
        assert max(len(entry.line.text) for entry in lines) == 8192
        with pytest.raises(CursorExpired):
            await anext(house.desk.follow(job.name, 1))
        await house.restart()
        assert await house.history(job) == events


async def test_two_hundred_readers_of_a_live_job_of_which_twenty_reconnect_each_see_every_event_once(
    tmp_path: Path,
) -> None:
    async def talk(worker: ScriptedWorker) -> None:
        for step in range(1, 61):
            await worker.say(a_step(step))
        await finish(worker)

    async with training_house(tmp_path, talk) as house:
        job = await house.start()

        async def follow(number: int) -> list[int]:
            seen: list[int] = []
            while True:
                stop_at = len(seen) + 3 + number % 5 if number < 20 else None
                async for event in house.desk.follow(job.name, seen[-1] if seen else 0):
                    assert event is not None
                    seen.append(event.sequence)
                    if len(seen) == stop_at:
                        break
                else:
                    return seen

        everything = await asyncio.gather(*(follow(number) for number in range(200)))

        latest = (await house.desk.get(job.name)).latest_sequence
        assert latest > 60
        assert all(seen == list(range(1, latest + 1)) for seen in everything)
        assert house.desk._journals._open == {}
