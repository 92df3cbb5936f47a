"""Jobs share the memory of the machine with models, and hear what is missing."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from headrace_server.errors import DeviceOutOfMemory
from headrace_server.memory import RESERVE_BYTES
from headrace_server.trainers.reports import WarningRaised
from headrace_server.training.memory_room import RANK_BYTES
from headrace_server.training.session import Outcome, TrainerEnded
from headrace_server.training.states import JobState
from tests.doubles.scripted_workers import ScriptedWorker
from tests.doubles.training_house import PATIENT, TrainingHouse


class ScriptedMemory:
    """So much is free, or becomes so."""

    def __init__(self, free_bytes: int) -> None:
        self.free_bytes = free_bytes
        self.asked: list[int] = []

    async def make_room(self, nbytes: int) -> int:
        """What is missing."""
        self.asked.append(nbytes)
        return max(nbytes - self.free_bytes, 0)


async def wait(worker: ScriptedWorker) -> None:
    """Train until told to stop."""
    await worker.train(range(1, 2))
    await worker.stopped.wait()
    await worker.end(TrainerEnded(Outcome.STOPPED, exit_code=0))


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[TrainingHouse]:
    house = TrainingHouse(tmp_path, wait, PATIENT)
    house.memory = ScriptedMemory(2 * RANK_BYTES)
    await house.build()
    yield house
    await house.close()


def memory_of(house: TrainingHouse) -> ScriptedMemory:
    assert isinstance(house.memory, ScriptedMemory)
    return house.memory


async def test_a_job_that_fits_begins_and_what_it_takes_at_least_was_asked_for(house: TrainingHouse) -> None:
    job = await house.start()

    await house.reached(job, JobState.RUNNING)
    (asked,) = memory_of(house).asked
    assert RANK_BYTES < asked < 2 * RANK_BYTES


async def test_a_job_that_does_not_fit_now_waits_says_why_and_begins_when_there_is_room(house: TrainingHouse) -> None:
    memory_of(house).free_bytes = RANK_BYTES - 1000

    job = await house.start()
    warning = (await house.seen(job, "warning_raised")).happening
    waiting = await house.desk.get(job.name)
    memory_of(house).free_bytes = 2 * RANK_BYTES
    begun = await house.reached(job, JobState.PREPARING)

    assert isinstance(warning, WarningRaised)
    assert warning.code == "WAITING_FOR_MEMORY"
    assert (waiting.state, waiting.state_message) == (JobState.QUEUED, warning.message)
    missing = memory_of(house).asked[0] - (RANK_BYTES - 1000)
    assert warning.message == f"waits for memory: {missing} bytes are missing"
    assert begun.sequence == 3  # it was told once, however often was looked
    assert (await house.desk.get(job.name)).state_message != warning.message


async def test_a_job_that_waits_for_memory_can_be_cancelled_and_makes_way_for_the_next(house: TrainingHouse) -> None:
    memory_of(house).free_bytes = 0
    first, second = await house.start(), await house.start()
    await house.seen(first, "warning_raised")

    cancelled = await house.desk.cancel(first.name, kill=False, reason="")
    await house.seen(second, "warning_raised")
    memory_of(house).free_bytes = 2 * RANK_BYTES

    assert cancelled.state is JobState.CANCELLED
    await house.reached(second, JobState.RUNNING)


async def test_a_more_urgent_job_goes_before_one_that_waits_for_memory(house: TrainingHouse) -> None:
    memory_of(house).free_bytes = 0
    patient = await house.start()
    await house.seen(patient, "warning_raised")

    urgent = await house.start(priority=5)
    await house.seen(urgent, "warning_raised")
    memory_of(house).free_bytes = 2 * RANK_BYTES

    await house.reached(urgent, JobState.RUNNING)
    assert (await house.desk.get(patient.name)).state is JobState.QUEUED


async def test_a_job_waits_for_memory_again_after_a_restart_of_the_server(house: TrainingHouse) -> None:
    memory_of(house).free_bytes = 0
    job = await house.start()
    warned = await house.seen(job, "warning_raised")

    await house.restart()
    await house.seen(job, "warning_raised", after=warned.sequence)
    memory_of(house).free_bytes = 2 * RANK_BYTES

    await house.reached(job, JobState.RUNNING)


async def test_a_server_can_end_while_a_job_waits_for_memory(house: TrainingHouse) -> None:
    memory_of(house).free_bytes = 0
    job = await house.start()
    await house.seen(job, "warning_raised")

    async with asyncio.timeout(60):
        await house.desk.drain()

    assert (await house.desk.get(job.name)).state is JobState.QUEUED


async def test_memory_that_a_job_has_not_taken_yet_is_not_given_to_the_next(tmp_path: Path) -> None:
    begins = asyncio.Event()

    async def take_time(worker: ScriptedWorker) -> None:
        await begins.wait()
        await wait(worker)

    house = TrainingHouse(tmp_path, take_time, PATIENT.model_copy(update={"max_running_jobs": 2}))
    house.memory = ScriptedMemory(2 * RANK_BYTES)
    await house.build()

    first, second = await house.start(), await house.start()
    await house.reached(first, JobState.PREPARING)
    await house.seen(second, "warning_raised")
    begins.set()  # from now on what the first has taken is in the figures of the kernel
    await house.reached(second, JobState.RUNNING)

    one, both = memory_of(house).asked[0], memory_of(house).asked[1]
    assert both == 2 * one
    await house.close()


async def test_a_job_that_waits_for_another_waits_for_its_memory_too(house: TrainingHouse) -> None:
    first = await house.start()
    await house.reached(first, JobState.RUNNING)
    memory_of(house).free_bytes = 0

    second = await house.start()

    assert second.state is JobState.QUEUED
    assert len(memory_of(house).asked) == 1  # it is not its turn


async def test_a_job_that_the_machine_can_never_hold_is_refused_although_others_run(house: TrainingHouse) -> None:
    first = await house.start()
    await house.reached(first, JobState.RUNNING)
    house.devices = replace(house.devices, memory_bytes=RANK_BYTES + RESERVE_BYTES)

    with pytest.raises(DeviceOutOfMemory, match="bytes are missing"):
        await house.start()


async def test_a_rehearsal_says_the_same_and_a_repeated_request_is_answered_whatever_is_free(
    house: TrainingHouse,
) -> None:
    job = await house.start(request_id="r")
    house.memory.free_bytes = 0  # type: ignore[union-attr]
    house.devices = replace(house.devices, memory_bytes=RESERVE_BYTES)

    with pytest.raises(DeviceOutOfMemory):
        await house.start(validate_only=True)

    assert (await house.start(request_id="r")).id == job.id
