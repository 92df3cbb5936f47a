"""Servers that leave and come back: drained, detached, or killed in the middle."""

import asyncio
from pathlib import Path

import pytest

from headrace_server.errors import Draining, IllegalTransition
from headrace_server.models.version import ModelVersion, NewVersion
from headrace_server.names import JobName
from headrace_server.training.events import Event, StateChanged
from headrace_server.training.session import Outcome, TrainerEnded, WorkerHello, WorkerSession
from headrace_server.training.states import JobState
from tests.doubles.mortal_database import PowerCut
from tests.doubles.scripted_workers import Script, ScriptedWorker, finish
from tests.doubles.training_house import IMPATIENT, PATIENT, TrainingHouse, training_house, transitions
from tests.doubles.until import until


async def train_on(worker: ScriptedWorker) -> None:
    """The first worker trains until told to stop; the second finishes."""
    if worker.attempt > 1:
        await finish(worker)
        return
    await worker.train(range(1, 3))
    if await worker.wait(60):
        await worker.save(2)
        await worker.end(TrainerEnded(Outcome.STOPPED, exit_code=0))


def train_in_two_parts(goes_on: asyncio.Event) -> Script:
    """Train a little, and the rest when it is time, whatever happens to the server."""

    async def train(worker: ScriptedWorker) -> None:
        await worker.train(range(1, 3))
        await goes_on.wait()
        await worker.train(range(3, 5))
        await worker.save(4)
        await worker.export(4)
        await worker.end(TrainerEnded(Outcome.FINISHED, exit_code=0))

    return train


async def test_a_worker_outlives_the_server_and_nothing_is_lost_or_told_twice(tmp_path: Path) -> None:
    goes_on = asyncio.Event()
    async with training_house(tmp_path, train_in_two_parts(goes_on)) as house:
        job = await house.start()
        await house.seen(job, "step_completed")

        goes_on.set()
        await house.restart()
        events = await house.history(job)

        assert transitions(events) == ["QUEUED", "PREPARING", "RUNNING", "FINALIZING", "SUCCEEDED"]
        assert [e.happening.step for e in events if e.happening.kind == "step_completed"] == [1, 2, 3, 4]
        assert [e.sequence for e in events] == list(range(1, len(events) + 1))
        assert list(house.launcher.workers) == [(job.id, 1)]


async def test_a_worker_that_comes_back_before_the_server_is_ready_is_not_turned_away_for_good(tmp_path: Path) -> None:
    async with training_house(tmp_path, _never) as house:
        job = await house.start()
        await house.seen(job, "step_completed")
        worker = house.launcher.newest(job.id)
        hello = WorkerHello(job.name, 1, worker.assignment.token, 101, "here")
        worker.fall_silent()
        refusals = []

        async def knock() -> WorkerSession:
            while True:
                try:
                    return await house.desk.attach(hello)
                except (Draining, PowerCut) as refusal:
                    refusals.append(refusal)
                    await asyncio.sleep(0)

        await house.desk.close()
        knocking = asyncio.ensure_future(knock())
        await house.open_desk()
        session = await knocking

        assert session.acknowledged > 0
        assert refusals
        assert (await house.desk.get(job.name)).state is JobState.RUNNING


async def test_a_worker_that_died_with_its_server_is_replaced_at_once(tmp_path: Path) -> None:
    patient = PATIENT.model_copy(update={"lease_seconds": 600})
    async with training_house(tmp_path, train_on, patient) as house:
        job = await house.start()
        await house.seen(job, "step_completed")

        house.launcher.newest(job.id).die()
        await house.restart()
        async with asyncio.timeout(60):
            over = await house.over(job)

        assert over.state is JobState.SUCCEEDED
        assert over.restarts == 1


async def test_a_worker_that_does_not_come_back_is_replaced(tmp_path: Path) -> None:
    async with training_house(tmp_path, train_on, IMPATIENT) as house:
        house.launcher.sees_ends = False
        job = await house.start()
        await house.seen(job, "step_completed")

        house.launcher.newest(job.id).die()
        await house.restart()
        over = await house.over(job)

        assert over.state is JobState.SUCCEEDED
        assert over.restarts == 1


async def test_jobs_that_wait_wait_again_in_the_same_order(tmp_path: Path) -> None:
    async with training_house(tmp_path, train_on) as house:
        first = await house.start(job_id="first")
        await house.reached(first, JobState.RUNNING)
        for name, priority in (("low", -5), ("normal-1", 0), ("normal-2", 0), ("high", 7)):
            await house.start(job_id=name, priority=priority)

        await house.restart()
        house.launcher.script = finish
        await house.desk.cancel(first.name, kill=True, reason="")
        for name in ("low", "normal-1", "normal-2", "high"):
            await house.over(await house.desk.get(JobName(name)))

        began = [job for job, _ in house.launcher.workers]
        assert began == ["first", "high", "normal-1", "normal-2", "low"]


async def test_draining_suspends_jobs_and_the_next_server_continues_them_for_free(tmp_path: Path) -> None:
    async with training_house(tmp_path, train_on) as house:
        job = await house.start()
        step = await house.seen(job, "step_completed")
        waiting = await house.start()
        follower = asyncio.ensure_future(_follow_until_drained(house, job.name, step.sequence))

        await house.desk.drain()
        events, resume_after = await follower
        suspended = await house.desk.get(job.name)

        assert suspended.state is JobState.RECOVERING
        assert suspended.restarts == 0
        assert isinstance(events[-1].happening, StateChanged)
        assert events[-1].happening.reason == "SERVER_DRAINING"
        assert resume_after == events[-1].sequence == suspended.latest_sequence
        assert (await house.desk.get(waiting.name)).state is JobState.QUEUED
        with pytest.raises(Draining):
            await house.start()

        house.launcher.script = finish
        await house.restart()
        rest = await house.history(job, resume_after)
        over = await house.desk.get(job.name)

        assert rest[0].sequence == resume_after + 1
        assert over.state is JobState.SUCCEEDED
        assert over.restarts == 0
        assert house.launcher.newest(job.id).assignment.resume_from is not None
        assert (await house.over(waiting)).state is JobState.SUCCEEDED


async def test_a_worker_that_does_not_end_while_draining_is_killed_and_continued_later(tmp_path: Path) -> None:
    async def ignore_once(worker: ScriptedWorker) -> None:
        if worker.attempt > 1:
            await finish(worker)
        await worker.train(range(1, 3))
        await asyncio.sleep(60)

    async with training_house(tmp_path, ignore_once, IMPATIENT) as house:
        job = await house.start()
        await house.seen(job, "step_completed")

        async with asyncio.timeout(60):
            await house.desk.drain()

        suspended = await house.desk.get(job.name)
        assert suspended.state is JobState.RECOVERING
        assert suspended.restarts == 0
        assert not house.launcher.newest(job.id).is_alive
        await house.restart()
        assert (await house.over(job)).state is JobState.SUCCEEDED


async def test_a_detached_worker_trains_on_without_a_server(tmp_path: Path) -> None:
    settings, goes_on = PATIENT.model_copy(update={"on_shutdown": "detach"}), asyncio.Event()
    async with training_house(tmp_path, train_in_two_parts(goes_on), settings) as house:
        job = await house.start()
        await house.seen(job, "step_completed")

        await house.desk.drain()
        state = (await house.desk.get(job.name)).state
        goes_on.set()
        await house.restart()
        events = await house.history(job)

        assert state is JobState.RUNNING
        assert transitions(events)[-2:] == ["FINALIZING", "SUCCEEDED"]
        assert list(house.launcher.workers) == [(job.id, 1)]
        assert house.launcher.newest(job.id).stops == []


async def test_a_job_that_was_being_cancelled_is_cancelled_by_the_next_server(tmp_path: Path) -> None:
    async def ignore(worker: ScriptedWorker) -> None:
        await worker.train(range(1, 3))
        await asyncio.sleep(60)

    settings = IMPATIENT.model_copy(update={"cancel_grace_seconds": 1})
    async with training_house(tmp_path, ignore, settings) as house:
        job = await house.start()
        await house.seen(job, "step_completed")
        await house.desk.cancel(job.name, kill=False, reason="")

        await house.restart()
        over = await house.over(job)

        assert over.state is JobState.CANCELLED
        assert "2 processes had to be killed" in over.state_message


async def test_a_suspended_job_that_waits_for_its_turn_can_be_cancelled(tmp_path: Path) -> None:
    settings = PATIENT.model_copy(update={"max_running_jobs": 2})
    async with training_house(tmp_path, train_on, settings) as house:
        jobs = [await house.start(), await house.start()]
        for job in jobs:
            await house.seen(job, "step_completed")
        await house.desk.drain()
        house.settings = PATIENT
        house.launcher.script = _never
        await house.restart()
        first, second = jobs
        await house.reached(first, JobState.PREPARING, (await house.desk.get(first.name)).latest_sequence - 1)

        asked = await house.desk.cancel(second.name, kill=False, reason="")
        over = await house.over(second)

        assert asked.state is JobState.CANCELLING
        assert over.state is JobState.CANCELLED


async def _never(worker: ScriptedWorker) -> None:
    await worker.train(range(1, 2))
    await asyncio.sleep(60)


async def test_what_a_dead_server_left_behind_of_finished_jobs_is_removed(tmp_path: Path) -> None:
    async with training_house(tmp_path) as house:
        job = await house.over(await house.start())
        await house.cleaned_up(job)
        folder = tmp_path / "workspaces" / job.id / "1"
        folder.mkdir(parents=True)
        (tmp_path / "workspaces" / "not a job").mkdir()
        await house.store.put_bytes(f"exports/{job.id}/9/model.onnx", b"never registered")

        await house.restart()
        await house.cleaned_up(job)

        assert await house.store.list(f"exports/{job.id}/9/") == []
        assert len(await house.store.list(f"exports/{job.id}/1/")) == 2
        assert (tmp_path / "workspaces" / "not a job").exists()


@pytest.mark.slow
@pytest.mark.parametrize("is_committed", [False, True])
async def test_a_server_that_is_killed_at_any_transaction_loses_and_repeats_nothing(
    tmp_path: Path, is_committed: bool
) -> None:
    dies_at = 0
    while True:
        dies_at += 1
        folder = tmp_path / str(dies_at)
        async with training_house(folder, settings=IMPATIENT) as house:  # some workers are never launched
            house.database.dies_at = house.database.num_writes + dies_at
            house.database.is_committed_at_death = is_committed
            try:
                await house.start(request_id="once", job_id="job")
            except PowerCut:
                pass
            else:
                await _wait_for_death_or_end(house)
            was_dead = house.database.is_dead
            await house.restart()
            job = await house.start(request_id="once", job_id="job")
            events = await house.history(job)
            over = await house.desk.get(job.name)

            assert over.state is JobState.SUCCEEDED, dies_at
            assert [e.sequence for e in events] == list(range(1, len(events) + 1))
            assert [e.happening.step for e in events if e.happening.kind == "step_completed"] == [1, 2, 3]
            assert transitions(events)[-2:] == ["FINALIZING", "SUCCEEDED"]
            assert [e.happening.kind for e in events].count("model_registered") == 1
            assert over.model_version == "models/flowers/versions/1"
            assert (await house.registry.get("flowers")).latest_version == 1
            if not was_dead:
                break
    assert dies_at > 8


@pytest.mark.parametrize("is_cancelled", [True, False])
async def test_a_version_that_is_registered_is_always_named_by_its_job(
    tmp_path: Path, is_cancelled: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    async with training_house(tmp_path) as house:
        register = house.registry.register

        async def register_and_die(new: NewVersion, *, origin: str, origin_digest: str) -> ModelVersion:
            version = await register(new, origin=origin, origin_digest=origin_digest)
            house.database.is_dead = True
            return version

        house.registry.register = register_and_die  # type: ignore[method-assign]
        job = await house.start()
        await until(lambda: house.database.is_dead)

        await house.restart()
        if is_cancelled:  # before the next server has looked at what the last one left
            with pytest.raises(IllegalTransition):
                await house.desk.cancel(job.name, kill=True, reason="")
        over = await house.over(job)
        await house.cleaned_up(job)

        assert over.state is JobState.SUCCEEDED
        assert over.model_version == "models/flowers/versions/1"
        assert (await house.registry.get("flowers")).latest_version == 1
        assert "training.supervision_failed" not in capsys.readouterr().out


async def test_a_fault_of_ours_after_a_version_is_registered_does_not_take_it_from_its_job(tmp_path: Path) -> None:
    async with training_house(tmp_path) as house:
        register = house.registry.register

        async def register_and_fail(new: NewVersion, *, origin: str, origin_digest: str) -> ModelVersion:
            await register(new, origin=origin, origin_digest=origin_digest)
            raise ZeroDivisionError

        house.registry.register = register_and_fail  # type: ignore[method-assign]
        over = await house.over(await house.start())

        assert over.state is JobState.SUCCEEDED
        assert over.model_version == "models/flowers/versions/1"


async def _wait_for_death_or_end(house: TrainingHouse) -> None:
    async with asyncio.timeout(60):
        while not house.database.is_dead:
            if (await house.desk.get(JobName("job"))).state.is_terminal:
                return
            await asyncio.sleep(0.01)


async def _follow_until_drained(house: TrainingHouse, name: JobName, after: int) -> tuple[list[Event], int]:
    events = []
    try:
        async for event in house.desk.follow(name, after):
            assert event is not None
            events.append(event)
    except Draining as draining:
        return events, int(draining.metadata["resume_after"])
    raise AssertionError("the follower was not told that the server leaves")
