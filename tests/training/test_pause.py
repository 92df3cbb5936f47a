"""Asking jobs to rest and to go on, in every state that they can be in; and removing those that are over."""

import asyncio
from pathlib import Path

import pytest

from headrace_server.errors import IllegalTransition, InvalidSpec, JobNotFound
from headrace_server.names import JobName, ModelName
from headrace_server.training.job import Job
from headrace_server.training.session import Outcome, TrainerEnded
from headrace_server.training.states import JobState
from tests.doubles.scripted_workers import ScriptedWorker, finish
from tests.doubles.training_house import IMPATIENT, PATIENT, TrainingHouse, training_house, transitions

STOPPED = TrainerEnded(Outcome.STOPPED, exit_code=0)


async def obey(worker: ScriptedWorker) -> None:
    """Train until told to stop, then stop with a checkpoint; finish when continued."""
    if worker.attempt > 1:
        await finish(worker)
    await worker.train(range(1, 3))
    await worker.stopped.wait()
    await worker.save(2)
    await worker.end(STOPPED)


async def test_a_paused_job_has_saved_and_no_process_and_goes_on_from_there_when_resumed(tmp_path: Path) -> None:
    async with training_house(tmp_path, obey) as house:
        job = await _running(house)

        asked = await house.desk.pause(job.name, reason="the night shift needs the machine")
        await house.reached(job, JobState.PAUSED)
        paused = await house.desk.get(job.name)
        resumed = await house.desk.resume(job.name)
        over = await house.over(job)

        assert asked.state is JobState.PAUSING
        assert asked.state_message == "asked to pause: the night shift needs the machine"
        assert paused.state_message == (
            "paused on request; no process had to be killed; another continues from the checkpoint at step 2"
        )
        assert not house.launcher.workers[job.id, 1].is_alive
        assert resumed.state is JobState.QUEUED
        assert over.state is JobState.SUCCEEDED
        assert over.restarts == 0
        assert house.launcher.workers[job.id, 2].assignment.resume_from == (
            f"checkpoints/{job.id}/000000000002-0001/manifest.json"
        )
        assert transitions(await house.history(job))[2:7] == ["RUNNING", "PAUSING", "PAUSED", "QUEUED", "PREPARING"]


async def test_a_paused_job_leaves_its_place_to_others(tmp_path: Path) -> None:
    async with training_house(tmp_path, obey) as house:
        job = await _running(house)
        await house.desk.pause(job.name, reason="")
        await house.reached(job, JobState.PAUSED)

        other = await house.start()
        await house.seen(other, "step_completed")
        await house.desk.resume(job.name)

        assert (await house.desk.get(job.name)).state is JobState.QUEUED
        await house.desk.cancel(other.name, kill=False, reason="")
        assert (await house.over(job)).state is JobState.SUCCEEDED


async def test_a_worker_that_does_not_rest_is_killed_after_its_grace_and_the_job_is_paused(tmp_path: Path) -> None:
    async def ignore(worker: ScriptedWorker) -> None:
        await worker.train(range(1, 3))
        await asyncio.sleep(60)

    async with training_house(tmp_path, ignore, IMPATIENT) as house:
        job = await _running(house)

        await house.desk.pause(job.name, reason="")
        await house.reached(job, JobState.PAUSED)

        paused = await house.desk.get(job.name)
        assert paused.state_message == (
            "paused on request; 2 processes had to be killed; another begins again, there being no checkpoint yet"
        )
        assert not house.launcher.newest(job.id).is_alive
        assert paused.restarts == 0


async def test_a_job_that_waits_is_paused_at_once_and_gets_no_turn(tmp_path: Path) -> None:
    async with training_house(tmp_path, obey) as house:
        first = await _running(house)
        waiting = await house.start()

        paused = await house.desk.pause(waiting.name, reason="")
        await house.desk.cancel(first.name, kill=False, reason="")
        await house.over(first)

        assert paused.state is JobState.PAUSED
        assert (waiting.id, 1) not in house.launcher.workers
        assert house.metrics.queued_jobs._value.get() == 0
        assert (await house.desk.resume(waiting.name)).state is JobState.QUEUED
        await house.seen(waiting, "step_completed")


async def test_a_job_between_two_workers_is_paused_at_once_and_does_not_wait_for_its_setback_when_resumed(
    tmp_path: Path,
) -> None:
    async def die_once(worker: ScriptedWorker) -> None:
        if worker.attempt > 1:
            await finish(worker)
        await worker.end(TrainerEnded(Outcome.DIED, signal="SIGKILL"))

    settings = PATIENT.model_copy(update={"restart_backoff_seconds": 30})
    async with training_house(tmp_path, die_once, settings) as house:
        job = await house.start()
        await house.reached(job, JobState.RECOVERING)
        await house.cleared(job)

        paused = await house.desk.pause(job.name, reason="")
        await house.desk.resume(job.name)

        assert paused.state is JobState.PAUSED
        assert (await house.over(job)).state is JobState.SUCCEEDED


async def test_repeating_is_harmless_and_verbs_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    async with training_house(tmp_path, obey) as house:
        job = await _running(house)
        with pytest.raises(IllegalTransition, match="cannot resume"):
            await house.desk.resume(job.name)
        with pytest.raises(IllegalTransition, match="cannot delete"):
            await house.desk.delete(job.name)

        await house.desk.pause(job.name, reason="")
        again = await house.desk.pause(job.name, reason="")
        with pytest.raises(IllegalTransition) as refusal:
            await house.desk.resume(job.name)
        await house.reached(job, JobState.PAUSED)
        sequence = (await house.desk.get(job.name)).latest_sequence
        await house.desk.pause(job.name, reason="")

        assert again.state is JobState.PAUSING
        assert refusal.value.metadata == {"name": str(job.name), "state": "PAUSING", "verb": "resume"}
        assert (await house.desk.get(job.name)).latest_sequence == sequence
        await house.desk.resume(job.name)
        await house.over(job)
        with pytest.raises(IllegalTransition):
            await house.desk.pause(job.name, reason="")
        with pytest.raises(JobNotFound):
            await house.desk.pause(JobName("nobody"), reason="")
        with pytest.raises(InvalidSpec):
            await house.desk.pause(job.name, reason="x" * 1001)


async def test_a_paused_job_can_be_cancelled_at_once(tmp_path: Path) -> None:
    async with training_house(tmp_path, obey) as house:
        job = await _running(house)
        await house.desk.pause(job.name, reason="")
        await house.reached(job, JobState.PAUSED)

        over = await house.desk.cancel(job.name, kill=False, reason="never mind")

        assert over.state is JobState.CANCELLED
        assert over.state_message == "cancelled while it was paused: never mind"


async def test_a_job_that_comes_to_its_end_while_it_is_asked_to_pause_has_succeeded(tmp_path: Path) -> None:
    async def finish_anyway(worker: ScriptedWorker) -> None:
        await worker.train(range(1, 3))
        await worker.stopped.wait()
        await finish(worker)

    async with training_house(tmp_path, finish_anyway) as house:
        job = await _running(house)

        await house.desk.pause(job.name, reason="")
        over = await house.over(job)

        assert over.state is JobState.SUCCEEDED
        assert transitions(await house.history(job))[-3:] == ["PAUSING", "FINALIZING", "SUCCEEDED"]


async def test_a_trainer_that_fails_while_it_is_asked_to_pause_fails_the_job(tmp_path: Path) -> None:
    async def fail(worker: ScriptedWorker) -> None:
        await worker.train(range(1, 3))
        await worker.stopped.wait()
        await worker.end(TrainerEnded(Outcome.FAILED, error="ValueError", message="no"))

    async with training_house(tmp_path, fail) as house:
        job = await _running(house)
        await house.desk.pause(job.name, reason="")

        assert (await house.over(job)).state is JobState.FAILED


@pytest.mark.parametrize("is_drained", [False, True])
async def test_paused_jobs_stay_paused_over_a_restart_and_pausing_ones_become_it(
    tmp_path: Path, is_drained: bool
) -> None:
    may_end = asyncio.Event()

    async def linger(worker: ScriptedWorker) -> None:
        if worker.attempt > 1:
            await finish(worker)
        await worker.train(range(1, 3))
        await worker.stopped.wait()
        await may_end.wait()
        await worker.save(2)
        await worker.end(STOPPED)

    settings = PATIENT.model_copy(update={"cancel_grace_seconds": 60})
    async with training_house(tmp_path, linger, settings) as house:
        job = await _running(house)
        await house.desk.pause(job.name, reason="")
        if is_drained:
            may_end.set()
            await house.desk.drain()

        await house.restart()
        may_end.set()
        await house.reached(job, JobState.PAUSED)
        await house.restart()

        assert (await house.desk.get(job.name)).state is JobState.PAUSED
        await house.desk.resume(job.name)
        await house.restart()
        assert (await house.over(job)).state is JobState.SUCCEEDED


async def test_a_deleted_job_is_gone_with_all_that_it_kept_but_what_it_became(tmp_path: Path) -> None:
    async with training_house(tmp_path) as house:
        job = await house.over(await house.start(job_id="once"))
        other = await house.over(await house.start())
        await house.cleaned_up(job)

        await house.desk.delete(job.name)

        with pytest.raises(JobNotFound):
            await house.desk.get(job.name)
        with pytest.raises(JobNotFound):
            await house.history(job)
        assert await house.store.list(f"checkpoints/{job.id}/") == []
        assert await house.store.list(f"checkpoints/{other.id}/") != []
        version = await house.registry.resolve(ModelName.parse(job.model_version))
        assert await house.store.get_bytes(version.artifacts[0].key) == b"program of attempt 1"
        with pytest.raises(JobNotFound):
            await house.desk.delete(job.name)


async def test_the_id_of_a_deleted_job_may_be_given_again_and_is_another_job(tmp_path: Path) -> None:
    async with training_house(tmp_path) as house:
        first = await house.over(await house.start(job_id="again", request_id="r1"))
        await house.cleaned_up(first)
        await house.desk.delete(first.name)

        second = await house.over(await house.start(job_id="again", request_id="r1"))

        assert second.state is JobState.SUCCEEDED
        assert second.model_version != first.model_version


async def _running(house: TrainingHouse) -> Job:
    job = await house.start()
    await house.seen(job, "step_completed")
    return job
