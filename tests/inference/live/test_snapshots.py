"""What a job's checkpoints are to callers: there, exact, and never in the way."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta

import pytest

from headrace_server.errors import CheckpointNotFound, JobNotFound, ModelFailed, ModelLoading, NoCheckpointYet
from headrace_server.inference.errands import Errands
from headrace_server.inference.live.snapshots import LOOK_SECONDS, MOST_SNAPSHOTS, RETRY_SECONDS, Snapshots
from headrace_server.models.snapshot import Snapshot
from headrace_server.names import SnapshotName
from tests.doubles.hand_clock import HandClock
from tests.doubles.scripted_jobs import SAVED_AT, ScriptedJobs, ScriptedPrograms, ScriptedResidency
from tests.doubles.until import until

LATEST, BEST = SnapshotName.parse("trainingJobs/j@latest"), SnapshotName.parse("trainingJobs/j@best")


class Bench:
    """Snapshots with everything around them scripted."""

    def __init__(self) -> None:
        self.jobs, self.programs, self.residency = ScriptedJobs(), ScriptedPrograms(), ScriptedResidency()
        self.clock, self.errands = HandClock(), Errands()
        self.snapshots = Snapshots(self.jobs, self.programs, self.residency, self.errands, self.clock)

    async def ask(self, name: SnapshotName = LATEST) -> int:
        """The step that answers, as the engine asks: it loads what it is given."""
        snapshot = await self.snapshots.find(name)
        await self.residency.load(snapshot)
        return snapshot.version

    async def ask_later(self, name: SnapshotName = LATEST) -> int:
        """Ask when the job is looked at anew, and then once more when what was begun is done."""
        self.clock.advance(LOOK_SECONDS)
        await self.snapshots.find(name)
        await self.errands.finish()
        return (await self.snapshots.find(name)).version


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    await bench.errands.close()


async def test_a_job_without_a_checkpoint_says_whether_to_wait_for_one(bench: Bench) -> None:
    with pytest.raises(NoCheckpointYet, match="no trainingJobs/j@latest yet; the job is RUNNING"):
        await bench.ask()

    bench.clock.advance(LOOK_SECONDS)
    bench.jobs.job = replace(bench.jobs.job, state="FAILED", is_over=True)
    with pytest.raises(CheckpointNotFound, match="keeps no checkpoint"):
        await bench.ask()
    assert bench.programs.num_prepared == 0


async def test_a_job_that_nobody_knows_is_not_found(bench: Bench) -> None:
    with pytest.raises(JobNotFound):
        await bench.ask(SnapshotName.parse("trainingJobs/other@latest"))


async def test_a_name_that_moves_is_answered_by_the_old_checkpoint_until_the_new_one_is_loaded(bench: Bench) -> None:
    bench.jobs.save(10)
    assert await bench.ask() == 10
    bench.jobs.save(20)

    assert (await bench.snapshots.find(LATEST)).version == 10  # the job was looked at a moment ago
    bench.clock.advance(LOOK_SECONDS)
    assert (await bench.snapshots.find(LATEST)).version == 10  # and now the newer one is being loaded behind it
    await bench.errands.finish()

    assert (await bench.snapshots.find(LATEST)).version == 20
    assert bench.residency.loaded == [20]


async def test_a_checkpoint_that_cannot_be_loaded_leaves_the_one_before_in_its_place(bench: Bench) -> None:
    bench.jobs.save(10)
    await bench.ask()
    bench.jobs.save(20)
    bench.residency.failure = ModelFailed("m", "no")

    assert await bench.ask_later() == 10
    bench.residency.failure = None
    assert await bench.ask_later() == 10  # not tried again at once
    bench.clock.advance(RETRY_SECONDS)
    assert await bench.ask_later() == 20


async def test_the_same_checkpoint_under_two_names_is_loaded_once_and_stays_for_the_second(bench: Bench) -> None:
    bench.jobs.save(10, is_best=True)
    assert await bench.ask(LATEST) == 10
    assert (await bench.snapshots.find(BEST)).key == (await bench.snapshots.find(LATEST)).key
    bench.jobs.save(20)

    assert await bench.ask_later(LATEST) == 20

    assert await bench.ask_later(BEST) == 10
    assert bench.residency.loaded == [10, 20]


async def test_best_has_averaged_weights_where_the_checkpoint_has_such(bench: Bench) -> None:
    bench.jobs.save(10, is_best=True, averaged=True)

    await bench.ask(BEST)
    await bench.ask(LATEST)

    assert bench.programs.made == ["sha256:10:best.safetensors", "sha256:10:weights.safetensors"]


async def test_a_step_answers_while_it_is_kept_and_afterwards_the_kept_ones_are_named(bench: Bench) -> None:
    for step in (10, 20, 30):
        bench.jobs.save(step)

    assert await bench.ask(SnapshotName.parse("trainingJobs/j@step:20")) == 20
    with pytest.raises(CheckpointNotFound) as caught:
        await bench.ask(SnapshotName.parse("trainingJobs/j@step:10"))
    assert caught.value.metadata["kept_steps"] == "30, 20"

    bench.jobs.save(40)
    bench.jobs.save(50)
    assert await bench.ask(SnapshotName.parse("trainingJobs/j@step:20")) == 20  # it is loaded, so it still answers


async def test_a_name_follows_a_training_that_removes_checkpoints_faster_than_they_are_read(bench: Bench) -> None:
    gone = bench.jobs.save(10)
    bench.programs.gate.clear()
    asking = asyncio.ensure_future(bench.ask())
    await until(lambda: bench.programs.num_prepared == 1)
    bench.jobs.save(20, keeps=1)
    assert gone not in bench.jobs.files

    bench.programs.gate.set()

    assert await asking == 20


async def test_callers_share_the_first_long_wait_and_one_who_leaves_ends_it_for_nobody(bench: Bench) -> None:
    bench.jobs.save(10)
    bench.programs.gate.clear()
    hasty = asyncio.ensure_future(bench.snapshots.find(LATEST, time.monotonic() + 0.05))
    patient = asyncio.ensure_future(bench.snapshots.find(LATEST))

    with pytest.raises(ModelLoading):
        await hasty
    bench.programs.gate.set()

    assert (await patient).version == 10
    assert bench.programs.num_prepared == 1


async def test_a_failure_is_told_to_everybody_for_a_while_before_it_is_tried_again(bench: Bench) -> None:
    bench.jobs.save(10)
    bench.programs.failure = ModelFailed("trainingJobs/j", "its program cannot be made")
    for _ in range(3):
        with pytest.raises(ModelFailed, match="cannot be made"):
            await bench.ask()
    assert bench.programs.num_prepared == 1

    bench.clock.advance(RETRY_SECONDS)
    bench.programs.failure = None

    assert await bench.ask() == 10


async def test_a_job_is_looked_at_a_few_times_a_second_however_many_ask(bench: Bench) -> None:
    bench.jobs.save(10)
    await bench.ask()
    looks = bench.jobs.num_looks

    for _ in range(100):
        await bench.snapshots.find(LATEST)

    assert bench.jobs.num_looks == looks


async def test_staleness_counts_the_steps_since_and_the_time_until_the_job_ended(bench: Bench) -> None:
    bench.jobs.save(10)
    snapshot = await bench.snapshots.find(LATEST)
    bench.jobs.job = replace(
        bench.jobs.job, latest_step=25, is_over=True, ended_at=SAVED_AT + timedelta(seconds=90), state="SUCCEEDED"
    )
    bench.clock.advance(LOOK_SECONDS)
    await bench.snapshots.find(LATEST)

    staleness = bench.snapshots.staleness(snapshot)

    assert (staleness.steps, staleness.age_seconds) == (15, 90)


async def test_programs_that_nobody_needs_are_removed(bench: Bench) -> None:
    first = MOST_SNAPSHOTS + 1
    for step in range(first):
        bench.jobs.save(step, keeps=first)
        await bench.snapshots.find(SnapshotName.parse(f"trainingJobs/j@step:{step}"))

    assert bench.programs.removed == ["sha256:0:weights.safetensors"]


async def test_a_snapshot_says_all_that_is_known_of_it(bench: Bench) -> None:
    bench.jobs.save(10)

    snapshot = await bench.snapshots.find(LATEST)

    assert isinstance(snapshot, Snapshot)
    assert str(snapshot.name) == "trainingJobs/j@step:10"
    assert (snapshot.lineage.training_job, snapshot.lineage.step) == ("trainingJobs/j", 10)
    assert (snapshot.lineage.checkpoint_digest, snapshot.created_at) == ("sha256:10", SAVED_AT)
    assert snapshot.labels == ("trainingJobs", "live")
