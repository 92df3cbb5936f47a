"""Faults of the machine and of our own: full disks, processes that do not die, errors that nobody expected."""

import asyncio
from pathlib import Path

import pytest

from headrace_server.errors import JobNotFound, StorageFull
from headrace_server.names import JobName
from headrace_server.training.session import Outcome, TrainerEnded
from headrace_server.training.states import JobState
from tests.doubles.scripted_workers import ScriptedWorker, finish
from tests.doubles.training_house import IMPATIENT, PATIENT, training_house, transitions
from tests.doubles.until import until


async def test_a_job_that_cannot_be_made_durable_is_not_admitted(tmp_path: Path) -> None:
    async with training_house(tmp_path) as house:
        house.database.is_full = True
        with pytest.raises(StorageFull):
            await house.start(job_id="mine", request_id="r")
        house.database.is_full = False

        with pytest.raises(JobNotFound):
            await house.desk.get(JobName("mine"))
        assert (await house.over(await house.start(job_id="mine", request_id="r"))).state is JobState.SUCCEEDED


async def test_a_full_disk_delays_a_job_and_costs_nothing_else(tmp_path: Path) -> None:
    is_full = asyncio.Event()

    async def train_slowly(worker: ScriptedWorker) -> None:
        await worker.train(range(1, 3))
        await is_full.wait()
        await worker.train(range(3, 5))
        await worker.export(4)
        await worker.end(TrainerEnded(Outcome.FINISHED, exit_code=0))

    async with training_house(tmp_path, train_slowly, IMPATIENT) as house:
        job = await house.start()
        await house.seen(job, "step_completed")
        house.database.is_full = True
        is_full.set()
        await asyncio.sleep(3 * IMPATIENT.lease_seconds)
        house.database.is_full = False
        events = await house.history(job)

        assert transitions(events) == ["QUEUED", "PREPARING", "RUNNING", "FINALIZING", "SUCCEEDED"]
        assert [e.happening.step for e in events if e.happening.kind == "step_completed"] == [1, 2, 3, 4]


async def test_a_full_disk_does_not_hide_the_loss_of_a_worker_for_good(tmp_path: Path) -> None:
    async def vanish_once(worker: ScriptedWorker) -> None:
        if worker.attempt > 1:
            await finish(worker)
        await worker.train(range(1, 3))
        worker.fall_silent()
        await asyncio.sleep(60)

    async with training_house(tmp_path, vanish_once, IMPATIENT) as house:
        job = await house.start()
        await house.seen(job, "step_completed")
        house.database.is_full = True
        await asyncio.sleep(2 * IMPATIENT.lease_seconds)
        still = await house.desk.get(job.name)
        house.database.is_full = False
        over = await house.over(job)

        assert still.state is JobState.RUNNING
        assert over.state is JobState.SUCCEEDED
        assert over.restarts == 1


async def test_no_worker_starts_while_a_process_of_the_last_one_does_not_die(tmp_path: Path) -> None:
    async def vanish_once(worker: ScriptedWorker) -> None:
        if worker.attempt > 1:
            await finish(worker)
        await worker.train(range(1, 3))
        worker.fall_silent()
        await asyncio.sleep(60)

    async with training_house(tmp_path, vanish_once, IMPATIENT) as house:
        house.launcher.cannot_kill = 4
        job = await house.start()
        await house.reached(job, JobState.RECOVERING)
        await until(lambda: house.launcher.cannot_kill == 0)
        over = await house.over(job)  # the launcher refuses to launch beside a living worker

        assert over.state is JobState.SUCCEEDED
        assert over.restarts == 1


async def test_a_job_is_not_called_cancelled_while_a_process_of_it_does_not_die(tmp_path: Path) -> None:
    async def ignore(worker: ScriptedWorker) -> None:
        await worker.train(range(1, 3))
        await asyncio.sleep(60)

    settings = PATIENT.model_copy(update={"cancel_grace_seconds": 0, "lease_seconds": 0.3})
    async with training_house(tmp_path, ignore, settings) as house:
        house.launcher.cannot_kill = 3
        job = await house.start()
        await house.seen(job, "step_completed")
        await house.desk.cancel(job.name, kill=False, reason="")
        await until(lambda: house.launcher.cannot_kill == 1)
        state = (await house.desk.get(job.name)).state
        over = await house.over(job)

        assert state is JobState.CANCELLING
        assert over.state is JobState.CANCELLED
        assert not house.launcher.newest(job.id).is_alive


async def test_a_fault_of_our_own_fails_the_job_with_an_id_and_disturbs_no_other(tmp_path: Path) -> None:
    async with training_house(tmp_path) as house:
        house.launcher.fault = ZeroDivisionError("ours")
        unlucky = await house.over(await house.start())
        house.launcher.fault = None
        lucky = await house.over(await house.start())

        assert unlucky.state is JobState.FAILED
        assert unlucky.failure is not None
        assert unlucky.failure.reason == "INTERNAL"
        assert len(unlucky.failure.metadata["error_id"]) == 8
        assert "ZeroDivisionError" not in unlucky.failure.message
        assert lucky.state is JobState.SUCCEEDED


async def test_a_workspace_that_cannot_be_written_delays_the_job_and_costs_no_restart(tmp_path: Path) -> None:
    async with training_house(tmp_path) as house:
        (tmp_path / "workspaces").write_text("in the way")
        job = await house.start(max_restarts=0)
        await house.reached(job, JobState.RECOVERING)
        (tmp_path / "workspaces").unlink()
        over = await house.over(job)

        assert over.state is JobState.SUCCEEDED
        assert over.restarts == 0


async def finish_as_the_store_leaves(worker: ScriptedWorker) -> None:
    """A training whose result is stored, in a store that is gone before the server reads it."""
    await worker.train(range(1, 3))
    await worker.save(2)
    root = worker._launcher.store._root  # type: ignore[attr-defined]
    await worker.export(2)
    root.rename(root.with_name("away"))
    await worker.end(TrainerEnded(Outcome.FINISHED, exit_code=0))


async def test_a_result_is_registered_when_the_store_is_back(tmp_path: Path) -> None:
    async with training_house(tmp_path, finish_as_the_store_leaves) as house:
        job = await house.start()
        away = tmp_path / "store"
        await until(lambda: not away.exists())
        supervisor = house.desk._turns.supervisor(job.id)
        assert supervisor is not None
        await until(lambda: supervisor._setbacks.lasting_seconds > 0)

        assert (await house.desk.get(job.name)).state.has_worker, "missing is not the same as lost"
        (tmp_path / "away").rename(tmp_path / "store")
        over = await house.over(job)

        assert over.state is JobState.SUCCEEDED
        assert over.restarts == 0


async def test_a_store_that_stays_away_fails_the_job_that_it_holds_the_result_of(tmp_path: Path) -> None:
    hasty = PATIENT.model_copy(update={"store_patience_seconds": 0.05})
    async with training_house(tmp_path, finish_as_the_store_leaves, hasty) as house:
        over = await house.over(await house.start())

        assert over.state is JobState.FAILED
        assert over.failure is not None
        assert over.failure.reason == "STORE_LOST"
        assert "is away" in over.failure.message
        (tmp_path / "away").rename(tmp_path / "store")
