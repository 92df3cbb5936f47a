"""Asking jobs to stop, in every state that they can be in."""

import asyncio
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from headrace_server.errors import IllegalTransition, InvalidSpec, JobNotFound
from headrace_server.names import JobName
from headrace_server.training.job import Job
from headrace_server.training.recording import record
from headrace_server.training.session import Outcome, TrainerEnded, WorkerReport
from headrace_server.training.states import JobState
from tests.doubles.scripted_workers import ScriptedWorker, finish
from tests.doubles.training_house import IMPATIENT, PATIENT, TrainingHouse, training_house, transitions
from tests.doubles.until import until


async def obey(worker: ScriptedWorker) -> None:
    """Train until told to stop, then stop with a checkpoint."""
    await worker.train(range(1, 3))
    await worker.stopped.wait()
    if worker.stops[-1].kill:
        await worker.end(TrainerEnded(Outcome.DIED, signal="SIGKILL", num_killed=3))
    await worker.save(2)
    await worker.end(TrainerEnded(Outcome.STOPPED, exit_code=0))


async def ignore(worker: ScriptedWorker) -> None:
    """Train on whatever is said."""
    await worker.train(range(1, 3))
    await asyncio.sleep(60)


async def never(worker: ScriptedWorker) -> None:
    """Live, and never say a word."""
    worker.fall_silent()
    await asyncio.sleep(60)


async def test_a_graceful_cancel_lets_the_worker_save_and_end(tmp_path: Path) -> None:
    async with training_house(tmp_path, obey) as house:
        job = await _running(house)

        asked = await house.desk.cancel(job.name, kill=False, reason="changed my mind")
        over = await house.over(job)

        assert asked.state is JobState.CANCELLING
        assert asked.state_message == "asked to stop: changed my mind"
        assert over.state is JobState.CANCELLED
        assert over.state_message == "stopped on request; no process had to be killed"
        assert over.latest_checkpoint is not None
        assert over.latest_checkpoint.step == 2
        assert house.launcher.newest(job.id).stops[0].grace_seconds == PATIENT.cancel_grace_seconds
        assert over.failure is None


async def test_a_kill_ends_the_worker_at_once_and_says_how_many_were_killed(tmp_path: Path) -> None:
    async with training_house(tmp_path, obey) as house:
        job = await _running(house)

        await house.desk.cancel(job.name, kill=True, reason="")
        over = await house.over(job)

        assert over.state is JobState.CANCELLED
        assert over.state_message == "stopped on request; 3 processes had to be killed"


async def test_a_worker_that_does_not_obey_is_killed_after_its_grace(tmp_path: Path) -> None:
    async with training_house(tmp_path, ignore, IMPATIENT) as house:
        job = await _running(house)

        begun = time.monotonic()
        await house.desk.cancel(job.name, kill=False, reason="")
        over = await house.over(job)

        assert over.state is JobState.CANCELLED
        assert over.state_message == "stopped on request; 2 processes had to be killed"
        assert time.monotonic() - begun >= PATIENT.cancel_grace_seconds
        assert not house.launcher.newest(job.id).is_alive


async def test_a_kill_may_follow_a_graceful_cancel_and_repeating_is_harmless(tmp_path: Path) -> None:
    settings = IMPATIENT.model_copy(update={"cancel_grace_seconds": 600})
    async with training_house(tmp_path, ignore, settings) as house:
        job = await _running(house)

        first = await house.desk.cancel(job.name, kill=False, reason="")
        again = await house.desk.cancel(job.name, kill=False, reason="")
        await house.desk.cancel(job.name, kill=True, reason="")
        events = await house.history(job)

        assert first.state is again.state is JobState.CANCELLING
        assert transitions(events)[-2:] == ["CANCELLING", "CANCELLED"]
        assert [stop.kill for stop in house.launcher.newest(job.id).stops] == [False, True]


async def test_a_job_that_waits_is_cancelled_at_once(tmp_path: Path) -> None:
    async with training_house(tmp_path, ignore) as house:
        await _running(house)
        waiting = await house.start()

        over = await house.desk.cancel(waiting.name, kill=False, reason="no more")

        assert over.state is JobState.CANCELLED
        assert over.state_message == "cancelled before it began: no more"
        assert over.started_at is None
        assert transitions(await house.history(waiting)) == ["QUEUED", "CANCELLED"]
        assert house.metrics.queued_jobs._value.get() == 0


async def test_a_job_that_is_over_cannot_be_cancelled(tmp_path: Path) -> None:
    async with training_house(tmp_path) as house:
        job = await house.over(await house.start())

        with pytest.raises(IllegalTransition) as refusal:
            await house.desk.cancel(job.name, kill=True, reason="")

        assert refusal.value.metadata == {"name": str(job.name), "state": "SUCCEEDED", "verb": "cancel"}
        assert (await house.desk.get(job.name)).state is JobState.SUCCEEDED


async def test_a_job_between_two_workers_is_cancelled_at_once(tmp_path: Path) -> None:
    async def die(worker: ScriptedWorker) -> None:
        await worker.end(TrainerEnded(Outcome.DIED, signal="SIGKILL"))

    settings = PATIENT.model_copy(update={"restart_backoff_seconds": 30})
    async with training_house(tmp_path, die, settings) as house:
        job = await house.start()
        await house.reached(job, JobState.RECOVERING)
        await house.cleared(job)

        over = await house.desk.cancel(job.name, kill=False, reason="")
        await house.over(job)

        assert over.state is JobState.CANCELLED
        assert len(house.launcher.workers) == 1


@pytest.mark.parametrize("is_silent", [False, True])
async def test_a_job_whose_old_worker_is_still_being_removed_is_cancelled_after_that(
    tmp_path: Path, is_silent: bool
) -> None:
    async def vanish(worker: ScriptedWorker) -> None:
        await worker.train(range(1, 2))
        if is_silent:
            worker.fall_silent()
            await asyncio.sleep(60)
        await worker.end(TrainerEnded(Outcome.DIED, signal="SIGKILL"))

    async with training_house(tmp_path, vanish, IMPATIENT) as house:
        house.launcher.may_kill.clear()
        job = await house.start()
        await house.reached(job, JobState.RECOVERING)
        await until(lambda: bool(house.launcher.kills))

        asked = await house.desk.cancel(job.name, kill=True, reason="")
        house.launcher.may_kill.set()
        over = await house.over(job)

        assert asked.state is JobState.CANCELLING
        assert over.state is JobState.CANCELLED
        assert len(house.launcher.workers) == 1


async def test_a_worker_that_is_only_starting_is_killed(tmp_path: Path) -> None:
    async with training_house(tmp_path, never) as house:
        job = await house.start()
        await house.reached(job, JobState.PREPARING)

        await house.desk.cancel(job.name, kill=False, reason="")
        over = await house.over(job)

        assert over.state is JobState.CANCELLED
        assert not house.launcher.newest(job.id).is_alive


async def test_a_worker_whose_last_word_is_kept_and_was_never_heard_is_not_waited_for(tmp_path: Path) -> None:
    async with training_house(tmp_path, never) as house:
        job = await house.start()
        await until(lambda: len(house.launcher.workers) == 1)
        last_word = WorkerReport(1, datetime.now(UTC), TrainerEnded(Outcome.DIED, signal="SIGKILL", num_killed=2))
        # As when its connection is cut after that was written down, and before its supervisor was told.
        await house.desk._jobs.amend(job.id, lambda amendment: record(amendment, 1, [last_word]))

        await house.desk.cancel(job.name, kill=True, reason="")
        async with asyncio.timeout(60):
            over = await house.over(job)

        assert over.state is JobState.CANCELLED


async def test_a_worker_that_finishes_while_it_is_cancelled_is_not_registered(tmp_path: Path) -> None:
    async def finish_late(worker: ScriptedWorker) -> None:
        await worker.train(range(1, 3))
        await worker.stopped.wait()
        await finish(worker)

    async with training_house(tmp_path, finish_late) as house:
        job = await _running(house)
        await house.desk.cancel(job.name, kill=False, reason="")
        over = await house.over(job)

        assert over.state is JobState.CANCELLED
        assert over.model_version == ""


async def test_cancelling_and_finishing_at_once_leaves_one_truth(tmp_path: Path) -> None:
    async with training_house(tmp_path) as house:
        for delay in range(12):
            job = await house.start(model=f"models/m{delay}")
            await house.reached(job, JobState.FINALIZING)
            await asyncio.sleep(delay / 1000)
            try:
                await house.desk.cancel(job.name, kill=False, reason="")
            except IllegalTransition:
                pass
            over = await house.over(job)
            is_registered = bool(over.model_version)
            assert is_registered == (over.state is JobState.SUCCEEDED)
            kinds = [event.happening.kind for event in await house.history(job)]
            assert kinds.count("model_registered") == int(is_registered)


async def test_bad_requests_are_refused(tmp_path: Path) -> None:
    async with training_house(tmp_path, ignore) as house:
        job = await _running(house)

        with pytest.raises(JobNotFound):
            await house.desk.cancel(JobName("nobody"), kill=False, reason="")
        with pytest.raises(InvalidSpec, match="reason"):
            await house.desk.cancel(job.name, kill=False, reason="x" * 1001)
        assert (await house.desk.get(job.name)).state is JobState.RUNNING


async def test_a_caller_who_hangs_up_does_not_cut_a_cancel_in_half(tmp_path: Path) -> None:
    async with training_house(tmp_path, obey) as house:
        job = await _running(house)

        call = asyncio.ensure_future(house.desk.cancel(job.name, kill=False, reason=""))
        await asyncio.sleep(0)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)

        assert (await house.over(job)).state is JobState.CANCELLED


async def _running(house: TrainingHouse) -> Job:
    job = await house.start()
    await house.reached(job, JobState.RUNNING)
    return job
