"""Workers that die, fall silent, never come, come back, or come too late."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import pytest

from headrace_server.errors import JobNotFound, WorkerFenced
from headrace_server.names import JobName
from headrace_server.training.events import StateChanged
from headrace_server.training.session import Exported, Outcome, TrainerEnded, WorkerHello, WorkerReport
from headrace_server.training.states import JobState
from tests.doubles.scripted_workers import ScriptedWorker, a_step, finish
from tests.doubles.training_house import IMPATIENT, PATIENT, training_house, transitions
from tests.doubles.until import until

KILLED = TrainerEnded(Outcome.DIED, signal="SIGKILL", out_of_memory=True, last_lines=("the end is near",))
AFTER_ONE_LOSS = ["QUEUED", "PREPARING", "RUNNING", "RECOVERING", "PREPARING", "RUNNING", "FINALIZING", "SUCCEEDED"]


async def test_a_dead_trainer_is_replaced_and_the_next_continues_from_the_checkpoint(tmp_path: Path) -> None:
    async def die_once(worker: ScriptedWorker) -> None:
        if worker.attempt == 2:
            await finish(worker)
            return
        await worker.train(range(1, 3))
        await worker.save(2)
        await worker.end(KILLED)

    async with training_house(tmp_path, die_once) as house:
        job = await house.start()
        events = await house.history(job)
        over = await house.desk.get(job.name)

        assert transitions(events) == AFTER_ONE_LOSS
        assert over.restarts == 1
        assert over.attempt == 2
        first, second = (house.launcher.workers[job.id, attempt].assignment for attempt in (1, 2))
        assert first.resume_from is None
        assert second.resume_from == f"checkpoints/{job.id}/000000000002-0001/manifest.json"
        assert first.token != second.token
        lost = next(event.happening for event in events if getattr(event.happening, "reason", "") == "TRAINER_DIED")
        assert isinstance(lost, StateChanged)
        assert "SIGKILL" in lost.message
        assert "memory ran out" in lost.message
        assert "checkpoint at step 2" in lost.message
        assert house.metrics.worker_restarts.labels("died")._value.get() == 1
        assert house.launcher.waits[0] == (job.id, 1), "an agent that has said its last word is not killed for it"


async def test_steps_that_are_done_again_after_a_restart_are_told_once(tmp_path: Path) -> None:
    async def die_once(worker: ScriptedWorker) -> None:
        if worker.attempt == 2:
            await worker.train(range(1, 6))  # from the beginning: there was no checkpoint
            await worker.export(5)
            await worker.end(TrainerEnded(Outcome.FINISHED, exit_code=0))
            return
        await worker.train(range(1, 4))
        await worker.end(KILLED)

    async with training_house(tmp_path, die_once) as house:
        events = await house.history(await house.start())

        steps = [event.happening.step for event in events if event.happening.kind == "step_completed"]
        assert steps == [1, 2, 3, 4, 5]


async def test_evaluations_and_checkpoints_that_come_again_after_a_restart_are_told_once(tmp_path: Path) -> None:
    async def die_twice(worker: ScriptedWorker) -> None:
        await worker.train(range(1, 4 + worker.attempt))
        await worker.evaluate(2)
        await worker.evaluate(2 + worker.attempt)
        if worker.attempt < 3:
            await worker.end(KILLED)
        worker.assignment = worker.assignment.model_copy(update={"attempt": 1})  # so that it has the same key
        await worker.save(6)
        await worker.save(6)
        await worker.save(7)
        await worker.export(7)
        await worker.end(TrainerEnded(Outcome.FINISHED, exit_code=0))

    async with training_house(tmp_path, die_twice) as house:
        job = await house.start()
        events = await house.history(job)
        over = await house.desk.get(job.name)

        evaluated = [event.happening.step for event in events if event.happening.kind == "evaluation_completed"]
        assert evaluated == [2, 3, 4, 5, 6, 7]
        saved = [event.happening for event in events if event.happening.kind == "checkpoint_saved"]
        assert [checkpoint.step for checkpoint in saved] == [6, 7]
        assert over.latest_checkpoint == saved[-1]


async def test_a_job_that_has_used_up_its_restarts_fails_with_the_evidence(tmp_path: Path) -> None:
    async def die(worker: ScriptedWorker) -> None:
        await worker.train(range(1, 3))
        await worker.end(KILLED)

    async with training_house(tmp_path, die) as house:
        job = await house.over(await house.start(max_restarts=2))

        assert job.state is JobState.FAILED
        assert job.attempt == 3
        assert job.failure is not None
        assert job.failure.reason == "WORKER_LOST"
        evidence = {key: job.failure.metadata[key] for key in ("exit_code", "signal", "out_of_memory", "restarts")}
        assert evidence == {"exit_code": "", "signal": "SIGKILL", "out_of_memory": "true", "restarts": "2"}
        assert job.failure.metadata["last_lines"] == "the end is near"


@pytest.mark.parametrize("says_goodbye", [False, True])
async def test_a_silent_worker_is_seen_within_its_lease_and_gone_before_the_next_starts(
    tmp_path: Path, says_goodbye: bool
) -> None:
    async def fall_silent_once(worker: ScriptedWorker) -> None:
        if worker.attempt == 2:
            await finish(worker)
            return
        await worker.train(range(1, 3))
        if says_goodbye:
            worker.hang_up()
        worker.fall_silent()
        await asyncio.sleep(30)

    # Whoever waited for as long as a worker may take to attach would wait until the test has failed.
    hasty = IMPATIENT.model_copy(update={"attach_seconds": 600})
    async with training_house(tmp_path, fall_silent_once, hasty) as house:
        job = await house.start()
        step = await house.seen(job, "step_completed")

        lost = await house.reached(job, JobState.RECOVERING, step.sequence)
        over = await house.over(job)  # the launcher refuses to launch while the old worker lives

        assert isinstance(lost.happening, StateChanged)
        assert lost.happening.reason == "WORKER_LOST"
        assert "silent" in lost.happening.message
        assert over.state is JobState.SUCCEEDED
        assert over.restarts == 1
        assert (job.id, 1, 1001) in house.launcher.kills
        assert house.launcher.workers[job.id, 1].is_alive is False
        assert house.metrics.worker_restarts.labels("silent")._value.get() == 1
        assert (job.id, 1) not in house.launcher.waits


async def test_a_worker_that_loses_its_connection_and_comes_back_in_time_loses_nothing(tmp_path: Path) -> None:
    async def stumble(worker: ScriptedWorker) -> None:
        await worker.train(range(1, 3))
        worker.hang_up()
        await worker.train(range(3, 6))
        await worker.export(5)
        await worker.end(TrainerEnded(Outcome.FINISHED, exit_code=0))

    async with training_house(tmp_path, stumble) as house:
        job = await house.start()
        events = await house.history(job)

        assert "RECOVERING" not in transitions(events)
        assert [e.happening.step for e in events if e.happening.kind == "step_completed"] == [1, 2, 3, 4, 5]


async def test_a_worker_that_never_attaches_is_replaced(tmp_path: Path) -> None:
    async def never_twice(worker: ScriptedWorker) -> None:
        await finish(worker)

    settings = PATIENT.model_copy(update={"attach_seconds": 0.3})
    async with training_house(tmp_path, never_twice, settings) as house:
        desk, house.launcher.desk = house.launcher.desk, _ClosedDoor()  # type: ignore[assignment]
        job = await house.start()
        lost = await house.reached(job, JobState.RECOVERING)
        house.launcher.desk = desk
        over = await house.over(job)

        assert isinstance(lost.happening, StateChanged)
        assert "did not attach" in lost.happening.message
        assert over.state is JobState.SUCCEEDED


@pytest.mark.parametrize("begins", [True, False])
async def test_a_worker_whose_process_is_gone_is_not_waited_for(tmp_path: Path, begins: bool) -> None:
    async def die_once(worker: ScriptedWorker) -> None:
        if worker.attempt == 1:
            if begins:
                await worker.train(range(1, 3))
            worker.die()
            return
        await finish(worker)

    patient = PATIENT.model_copy(update={"attach_seconds": 600, "lease_seconds": 600})
    async with training_house(tmp_path, die_once, patient) as house:
        job = await house.start()
        async with asyncio.timeout(60):
            lost = await house.reached(job, JobState.RECOVERING)
        over = await house.over(job)

        assert isinstance(lost.happening, StateChanged)
        assert lost.happening.reason == "WORKER_LOST"
        assert "the worker was ended by SIGKILL" in lost.happening.message
        assert ("before it attached" in lost.happening.message) is not begins
        assert over.state is JobState.SUCCEEDED
        assert over.restarts == 1


class _ClosedDoor:
    async def attach(self, hello: WorkerHello) -> None:
        raise ConnectionError


async def test_a_worker_that_cannot_be_launched_is_tried_again(tmp_path: Path) -> None:
    async with training_house(tmp_path) as house:
        house.launcher.cannot_launch = 2
        over = await house.over(await house.start())

        assert over.state is JobState.SUCCEEDED
        assert over.restarts == 2


async def test_a_worker_that_was_replaced_is_refused_whatever_it_says(tmp_path: Path) -> None:
    async def fall_silent_once(worker: ScriptedWorker) -> None:
        if worker.attempt == 1:
            await worker.train(range(1, 2))
            worker.fall_silent()
            await asyncio.sleep(30)
        await worker.train(range(2, 3))
        await worker.stopped.wait()

    async with training_house(tmp_path, fall_silent_once, IMPATIENT) as house:
        job = await house.start()
        recovering = await house.reached(job, JobState.RECOVERING)
        running = await house.reached(job, JobState.RUNNING, recovering.sequence)
        await house.seen(job, "step_completed", running.sequence)  # the last that the new worker says
        old = house.launcher.workers[job.id, 1]
        hello = WorkerHello(job.name, 1, old.assignment.token, 1, "here")

        with pytest.raises(WorkerFenced) as refusal:
            await house.desk.attach(hello)

        assert refusal.value.metadata == {"attempt": "1", "current": "2"}
        before = (await house.desk.get(job.name)).latest_sequence
        assert old._session is None or old._session.is_closed
        assert (await house.desk.get(job.name)).latest_sequence == before


async def test_only_the_secret_opens_the_door_for_a_worker(tmp_path: Path) -> None:
    async def wait(worker: ScriptedWorker) -> None:
        await worker.train(range(1, 2))
        await worker.stopped.wait()

    async with training_house(tmp_path, wait) as house:
        job = await house.start()
        await house.reached(job, JobState.RUNNING)

        for token in ("", "guess", "ü", house.launcher.newest(job.id).assignment.token[:-1]):
            with pytest.raises(WorkerFenced):
                await house.desk.attach(WorkerHello(job.name, 1, token, 1, "here"))
        with pytest.raises(WorkerFenced):
            await house.desk.attach(WorkerHello(job.name, 7, "any", 1, "here"))
        with pytest.raises(JobNotFound):
            await house.desk.attach(WorkerHello(JobName("nobody"), 1, "any", 1, "here"))


async def test_a_second_connection_of_the_same_worker_ends_the_first(tmp_path: Path) -> None:
    async def wait(worker: ScriptedWorker) -> None:
        await worker.train(range(1, 2))
        worker.fall_silent()
        await worker.stopped.wait()

    async with training_house(tmp_path, wait) as house:
        job = await house.start()
        worker = house.launcher.newest
        await house.seen(job, "step_completed")
        await until(lambda: worker(job.id)._session is not None)
        first = worker(job.id)._session
        assert first is not None
        token = worker(job.id).assignment.token

        second = await house.desk.attach(WorkerHello(job.name, 1, token, 1, "here"))

        assert second.acknowledged > 0
        with pytest.raises(WorkerFenced):
            await first.receive([_report(second.acknowledged + 1, 9)])
        assert await second.receive([_report(second.acknowledged + 1, 2)]) == second.acknowledged


def _report(number: int, step: int) -> WorkerReport:
    return WorkerReport(number, datetime.now(UTC), a_step(step))


async def test_reports_are_kept_once_by_number_and_never_past_a_gap(tmp_path: Path) -> None:
    async def wait(worker: ScriptedWorker) -> None:
        await worker.wait(30)

    async with training_house(tmp_path, wait) as house:
        job = await house.start()
        await until(lambda: (job.id, 1) in house.launcher.workers)
        worker = house.launcher.newest(job.id)
        hello = WorkerHello(job.name, 1, worker.assignment.token, 1, "here")
        worker.fall_silent()
        session = await house.desk.attach(hello)

        assert await session.receive([_report(1, 1), _report(2, 2)]) == 2
        assert await session.receive([_report(1, 7), _report(2, 8), _report(3, 3)]) == 3
        assert await session.receive([_report(5, 5)]) == 3
        assert await session.receive([]) == 3

        steps = []
        async for event in house.desk.follow(job.name, 0):
            assert event is not None
            if event.happening.kind == "step_completed":
                steps.append(event.happening.step)
            if steps == [1, 2, 3]:
                break
        assert (await house.desk.get(job.name)).latest_step == a_step(3)


async def test_a_finished_worker_without_an_export_is_replaced(tmp_path: Path) -> None:
    async def forget_once(worker: ScriptedWorker) -> None:
        if worker.attempt == 1:
            await worker.train(range(1, 2))
            await worker.end(TrainerEnded(Outcome.FINISHED, exit_code=0))
        else:
            await finish(worker)

    async with training_house(tmp_path, forget_once) as house:
        over = await house.over(await house.start())

        assert over.state is JobState.SUCCEEDED
        assert over.restarts == 1


@pytest.mark.parametrize("damage", ["missing", "nonsense", "foreign", "incomplete"])
async def test_an_export_that_cannot_be_registered_fails_the_job(tmp_path: Path, damage: str) -> None:
    async def spoil(worker: ScriptedWorker) -> None:
        await worker.train(range(1, 2))
        await worker.export(1)
        key = f"{worker.prefix}manifest.json"
        match damage:
            case "missing":
                await worker._launcher.store.delete(key)
            case "nonsense":
                await worker._launcher.store.put_bytes(key, b"{]")
            case "foreign":
                await worker.say(Exported("exports/somebody-else/1/manifest.json"))
            case "incomplete":
                await worker._launcher.store.delete(f"{worker.prefix}model.onnx")
        await worker.end(TrainerEnded(Outcome.FINISHED, exit_code=0))

    async with training_house(tmp_path, spoil) as house:
        over = await house.over(await house.start())

        assert over.state is JobState.FAILED
        assert over.failure is not None
        assert over.failure.reason == "INVALID_MODEL"
        assert over.model_version == ""


async def test_a_loss_that_is_not_a_number_is_told_as_it_is(tmp_path: Path) -> None:
    async def diverge(worker: ScriptedWorker) -> None:
        await worker.say(a_step(1, float("nan")), a_step(2, float("inf")))
        await finish(worker)

    async with training_house(tmp_path, diverge) as house:
        job = await house.start()
        await house.over(job)
        events = await house.history(job)

        losses = [str(e.happening.loss) for e in events if e.happening.kind == "step_completed"]
        assert losses[:2] == ["nan", "inf"]
