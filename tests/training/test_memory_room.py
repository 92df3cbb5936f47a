"""Jobs share the memory of the machine with models, and hear what is missing."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from headrace_server.errors import DeviceOutOfMemory
from headrace_server.memory import RESERVE_BYTES
from headrace_server.pages import PageRequest
from headrace_server.training.memory_room import RANK_BYTES
from headrace_server.training.session import Outcome, TrainerEnded
from headrace_server.training.states import JobState
from tests.doubles.scripted_workers import ScriptedWorker
from tests.doubles.training_house import IMPATIENT, TrainingHouse


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
    house = TrainingHouse(tmp_path, wait, IMPATIENT)
    house.memory = ScriptedMemory(2 * RANK_BYTES)
    await house.build()
    yield house
    await house.close()


async def test_a_job_that_fits_is_admitted_and_what_it_takes_at_least_was_asked_for(house: TrainingHouse) -> None:
    job = await house.start()

    assert job.state is JobState.QUEUED
    assert isinstance(house.memory, ScriptedMemory)
    (asked,) = house.memory.asked
    assert RANK_BYTES < asked < 2 * RANK_BYTES


async def test_a_job_that_does_not_fit_now_is_refused_with_what_is_missing_and_leaves_nothing(
    house: TrainingHouse,
) -> None:
    house.memory.free_bytes = RANK_BYTES - 1000  # type: ignore[union-attr]

    with pytest.raises(DeviceOutOfMemory) as refused:
        await house.start()

    assert refused.value.missing_bytes is not None
    assert refused.value.missing_bytes > 1000
    assert (await house.desk.list(PageRequest(10, None, ""), "")).items == []


async def test_a_job_that_waits_for_another_waits_for_its_memory_too(house: TrainingHouse) -> None:
    first = await house.start()
    await house.reached(first, JobState.RUNNING)
    house.memory.free_bytes = 0  # type: ignore[union-attr]

    second = await house.start()

    assert second.state is JobState.QUEUED


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
