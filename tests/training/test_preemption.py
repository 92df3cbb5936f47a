"""Who gives way to whom."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

from hypothesis import given, strategies as st

from headrace_server.training.job import Job
from headrace_server.training.preemption import Running, choose_victims
from headrace_server.training.session import Outcome, TrainerEnded
from headrace_server.training.states import JobState
from tests.doubles.scripted_workers import ScriptedWorker, finish
from tests.doubles.training_house import IMPATIENT, PATIENT, TrainingHouse, training_house, transitions
from tests.doubles.until import until

STOPPED = TrainerEnded(Outcome.STOPPED, exit_code=0)
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def running(job: str, priority: int, *, preemptible: bool = True, leaving: bool = False, age: int = 0) -> Running:
    return Running(job, priority, preemptible, leaving, NOON - timedelta(seconds=age))


def test_the_job_of_least_priority_gives_way_and_of_equals_the_youngest() -> None:
    jobs = [running("low-old", -5, age=60), running("low-young", -5), running("high", 1)]

    assert choose_victims([("urgent", 9)], jobs, 0) == [("low-young", "urgent")]
    assert choose_victims([("urgent", 9), ("next", 8)], jobs, 0) == [("low-young", "urgent"), ("low-old", "next")]


def test_nobody_gives_way_to_an_equal_or_without_permission_or_need() -> None:
    assert choose_victims([("same", 1)], [running("one", 1)], 0) == []
    assert choose_victims([("urgent", 9)], [running("firm", -9, preemptible=False)], 0) == []
    assert choose_victims([("urgent", 9)], [running("one", 1)], 1) == []
    assert choose_victims([("urgent", 9)], [running("going", 1, leaving=True), running("one", 1)], 0) == []


@given(
    waiting=st.lists(st.integers(-3, 3)).map(lambda found: sorted(found, reverse=True)),
    jobs=st.lists(st.tuples(st.integers(-3, 3), st.booleans(), st.booleans())),
    num_free=st.integers(0, 3),
)
def test_each_victim_permits_it_and_has_less_priority_and_none_is_taken_in_vain(
    waiting: list[int], jobs: list[tuple[int, bool, bool]], num_free: int
) -> None:
    known = {
        str(number): running(str(number), priority, preemptible=permits, leaving=leaving)
        for number, (priority, permits, leaving) in enumerate(jobs)
    }
    queue = [(f"w{number}", priority) for number, priority in enumerate(waiting)]

    chosen = choose_victims(queue, known.values(), num_free)

    victims = [known[victim] for victim, _ in chosen]
    assert len({victim.job for victim in victims}) == len(victims)
    for victim, (_, by) in zip(victims, chosen, strict=True):
        assert victim.is_preemptible
        assert not victim.is_giving_way
        assert victim.priority < dict(queue)[by]
    num_coming = num_free + sum(job.is_giving_way for job in known.values())
    assert len(chosen) <= max(0, len(waiting) - num_coming)


async def obey(worker: ScriptedWorker) -> None:
    """Train until told to stop; a job that was stopped once finishes the next time."""
    if worker.attempt > 1 or worker.assignment.recipe.seed == 1:
        await finish(worker)
    await worker.train(range(1, 3))
    await worker.stopped.wait()
    await worker.save(2)
    await worker.end(STOPPED)


async def start(house: TrainingHouse, priority: int, *, preemptible: bool = False, seed: int = 0) -> Job:
    return await house.start(priority=priority, is_preemptible=preemptible, recipe={"seed": seed})


async def test_a_job_gives_its_place_to_one_of_higher_priority_and_goes_on_later(tmp_path: Path) -> None:
    async with training_house(tmp_path, obey) as house:
        meek = await start(house, 0, preemptible=True)
        await house.seen(meek, "step_completed")

        urgent = await start(house, 5, seed=1)
        urgent_over, meek_over = await house.over(urgent), await house.over(meek)

        assert urgent_over.state is meek_over.state is JobState.SUCCEEDED
        assert urgent_over.ended_at is not None
        assert meek_over.ended_at is not None
        assert urgent_over.ended_at < meek_over.ended_at
        events = await house.history(meek)
        assert transitions(events)[:6] == ["QUEUED", "PREPARING", "RUNNING", "PAUSING", "QUEUED", "PREPARING"]
        reasons = [event.happening.reason for event in events if event.happening.kind == "state_changed"]
        assert reasons[3:5] == ["PREEMPTED", "PREEMPTED"]
        assert house.launcher.workers[meek.id, 2].assignment.resume_from == (
            f"checkpoints/{meek.id}/000000000002-0001/manifest.json"
        )
        assert meek_over.restarts == 0
        assert house.metrics.preemptions._value.get() == 1


async def test_a_job_that_does_not_permit_it_keeps_its_place(tmp_path: Path) -> None:
    is_asked = asyncio.Event()

    async def wait(worker: ScriptedWorker) -> None:
        await worker.train(range(1, 3))
        await is_asked.wait()
        assert not await worker.wait(0.2)
        await finish(worker)

    async with training_house(tmp_path, wait) as house:
        firm = await start(house, 0)
        await house.seen(firm, "step_completed")

        urgent = await start(house, 5)
        is_asked.set()

        assert (await house.over(firm)).state is JobState.SUCCEEDED
        assert "PAUSING" not in transitions(await house.history(firm))
        await house.over(urgent)


async def test_preemption_can_be_turned_off(tmp_path: Path) -> None:
    settings = PATIENT.model_copy(update={"preemption": False})
    async with training_house(tmp_path, obey, settings) as house:
        meek = await start(house, 0, preemptible=True)
        await house.seen(meek, "step_completed")

        urgent = await start(house, 5, seed=1)

        assert (await house.desk.get(meek.name)).state is JobState.RUNNING
        assert (await house.desk.get(urgent.name)).state is JobState.QUEUED


async def test_a_worker_that_does_not_give_way_is_killed_after_its_grace(tmp_path: Path) -> None:
    async def ignore(worker: ScriptedWorker) -> None:
        if worker.attempt > 1 or worker.assignment.recipe.seed == 1:
            await finish(worker)
        await worker.train(range(1, 3))
        await worker.wait(60)
        await worker.wait(60)

    async with training_house(tmp_path, ignore, IMPATIENT) as house:
        meek = await start(house, 0, preemptible=True)
        await house.seen(meek, "step_completed")

        urgent = await start(house, 5, seed=1)

        assert (await house.over(urgent)).state is JobState.SUCCEEDED
        assert (await house.over(meek)).state is JobState.SUCCEEDED


async def test_a_job_that_is_asked_to_pause_while_it_gives_way_rests(tmp_path: Path) -> None:
    async def linger(worker: ScriptedWorker) -> None:
        if worker.assignment.recipe.seed == 1:
            await finish(worker)
        await worker.train(range(1, 3))
        await worker.stopped.wait()
        await may_end.wait()
        await worker.end(STOPPED)

    may_end = asyncio.Event()
    async with training_house(tmp_path, linger) as house:
        meek = await start(house, 0, preemptible=True)
        await house.seen(meek, "step_completed")
        urgent = await start(house, 5, seed=1)
        await house.reached(meek, JobState.PAUSING)

        await house.desk.pause(meek.name, reason="")
        may_end.set()

        assert (await house.over(urgent)).state is JobState.SUCCEEDED
        assert (await house.desk.get(meek.name)).state is JobState.PAUSED


async def test_a_server_that_dies_while_a_job_gives_way_lets_the_next_one_finish_it(tmp_path: Path) -> None:
    async with training_house(tmp_path, obey, IMPATIENT) as house:  # a worker without a connection cannot obey
        meek = await start(house, 0, preemptible=True)
        await house.seen(meek, "step_completed")
        for worker in house.launcher.workers.values():
            worker.hang_up()
        urgent = await start(house, 5, seed=1)
        await until(lambda: house.metrics.preemptions._value.get() == 1)

        await house.restart()

        assert (await house.over(urgent)).state is JobState.SUCCEEDED
        assert (await house.over(meek)).state is JobState.SUCCEEDED
