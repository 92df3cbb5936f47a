"""Anything may happen to jobs, in any order: what is promised holds all the same.

Deaths of workers, silence, lost connections, cancels, pauses, preemptions, restarts and sudden deaths of the server are
drawn at random.
Then: terminal states never change, every history has every sequence once, only legal transitions are made, and at most
one worker has a job at a time (the launcher refuses to launch beside a living one, and that fails the job as INTERNAL).
"""

import asyncio
import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from headrace_server.errors import HeadraceError
from headrace_server.names import JobName
from headrace_server.settings import TrainingSettings
from headrace_server.training.events import Event, StateChanged
from headrace_server.training.job import Job
from headrace_server.training.session import Outcome, TrainerEnded
from headrace_server.training.states import JobState
from tests.doubles.mortal_database import PowerCut
from tests.doubles.scripted_workers import ScriptedWorker, finish
from tests.doubles.training_house import TrainingHouse

HASTY = TrainingSettings(
    heartbeat_seconds=0.03,
    lease_seconds=0.3,
    attach_seconds=1,
    cancel_grace_seconds=0.1,
    restart_backoff_seconds=0.005,
    max_running_jobs=2,
)
STEPS = ["start", "urgent", "cancel", "kill", "pause", "resume", "restart", "power cut", "detach", "wait", "hang up"]


@pytest.mark.slow
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=st.lists(st.sampled_from(STEPS), min_size=3, max_size=14), seed=st.integers(0, 2**16))
def test_whatever_happens_every_job_ends_and_its_history_is_whole(steps: list[str], seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_live(Path(folder), steps, seed))


async def _live(folder: Path, steps: list[str], seed: int) -> None:
    world = _World(folder, seed)
    await world.house.build()
    try:
        for step in steps:
            await world.take(step)
        await world.end()
    finally:
        await world.house.close()


class _World:
    """A house in which much goes wrong, until it does no longer."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.house = TrainingHouse(folder, self._act, HASTY)
        self._chance = random.Random(seed)
        self._jobs: list[Job] = []
        self._ended: dict[str, Job] = {}
        self._is_calm = False

    async def take(self, step: str) -> None:
        house = self.house
        match step:
            case "start":
                await self._try_to_start(priority=0)
            case "urgent":
                await self._try_to_start(priority=1)
            case "pause" | "resume" if self._jobs:
                await self._try_to(step, self._chance.choice(self._jobs))
            case "cancel" | "kill" if self._jobs:
                await self._try_to_cancel(self._chance.choice(self._jobs), kill=step == "kill")
            case "restart":
                await house.restart()
            case "power cut":
                house.database.dies_at = house.database.num_writes + self._chance.randint(1, 4)
                house.database.is_committed_at_death = self._chance.random() < 0.5
                await asyncio.sleep(0.05)
                await house.restart()
            case "detach":
                await house.desk.drain()
                await house.restart()
            case "hang up":
                for worker in house.launcher.workers.values():
                    worker.hang_up()
        await asyncio.sleep(self._chance.random() * 0.1)
        await self._look()

    async def end(self) -> None:
        """Let nothing go wrong any more; then every job must end."""
        self._is_calm = True
        async with asyncio.timeout(60):
            for job in self._jobs:
                await self._wake(job)
                events = await self.house.history(job)
                over = await self.house.desk.get(job.name)
                _check_history(events, over)
                if job.id in self._ended:
                    assert over == self._ended[job.id], "a terminal job has changed"
        alive = [key for key, worker in self.house.launcher.workers.items() if worker.is_alive]
        for key in alive:  # those that have just been told that all is well may still be about to leave
            await self.house.cleaned_up(await self.house.desk.get(JobName(key[0])))
            assert not self.house.launcher.workers[key].is_alive

    async def _wake(self, job: Job) -> None:
        """Resume a job that rests, or is about to."""
        async for event in self.house.desk.follow(job.name, 0):
            state = (await self.house.desk.get(job.name)).state
            if state is JobState.PAUSED:
                await self.house.desk.resume(job.name)
            if event is None or state not in (JobState.PAUSING, JobState.PAUSED):
                return

    async def _try_to_start(self, priority: int) -> None:
        restarts, is_preemptible = self._chance.choice([0, 1, 50]), self._chance.random() < 0.7
        try:
            job = await self.house.start(max_restarts=restarts, priority=priority, is_preemptible=is_preemptible)
            self._jobs.append(job)
        except (PowerCut, HeadraceError):
            pass

    async def _try_to(self, verb: str, job: Job) -> None:
        try:
            if verb == "pause":
                await self.house.desk.pause(job.name, reason="chance")
            else:
                await self.house.desk.resume(job.name)
        except (PowerCut, HeadraceError):
            pass

    async def _try_to_cancel(self, job: Job, *, kill: bool) -> None:
        try:
            await self.house.desk.cancel(job.name, kill=kill, reason="chance")
        except (PowerCut, HeadraceError):
            pass

    async def _look(self) -> None:
        for job in self._jobs:
            now = await self.house.desk.get(job.name)
            if job.id in self._ended:
                assert now == self._ended[job.id], "a terminal job has changed"
            elif now.state.is_terminal:
                self._ended[job.id] = now

    async def _act(self, worker: ScriptedWorker) -> None:
        fate = "finish" if self._is_calm else self._chance.choice(["finish", "die", "fail", "silent", "stop", "long"])
        match fate:
            case "finish":
                await finish(worker)
            case "die":
                await worker.train(range(1, 3))
                await worker.save(2)
                await worker.end(TrainerEnded(Outcome.DIED, signal="SIGSEGV"))
            case "fail":
                await worker.end(TrainerEnded(Outcome.FAILED, error="ValueError", message="chance"))
            case "silent":
                await worker.train(range(1, 3))
                worker.fall_silent()
                await asyncio.sleep(60)
            case "stop":
                await worker.end(TrainerEnded(Outcome.STOPPED, exit_code=0))
            case "long":
                await worker.train(range(1, 3))
                await worker.wait(0.3)
                await finish(worker)


def _check_history(events: list[Event], over: Job) -> None:
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert over.latest_sequence == len(events)
    assert over.state.is_terminal
    assert over.failure is None or over.failure.reason != "INTERNAL"
    changes = [event.happening for event in events if isinstance(event.happening, StateChanged)]
    state: JobState | None = None
    for change in changes:
        assert change.from_state == state
        assert state is None or state.may_become(change.to_state)
        state = change.to_state
    assert state is over.state
    assert isinstance(events[-1].happening, StateChanged)
    assert sum(change.to_state.is_terminal for change in changes) == 1
    steps = [event.happening.step for event in events if event.happening.kind == "step_completed"]
    assert steps == sorted(set(steps))
    num_registered = sum(event.happening.kind == "model_registered" for event in events)
    assert num_registered == (over.state is JobState.SUCCEEDED)
