from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from headrace_server.errors import InvalidSpec, JobNotFound
from headrace_server.trainers.reports import WarningRaised
from headrace_server.training.comparison import MOST_JOBS, differences
from headrace_server.training.session import Outcome, TrainerEnded
from headrace_server.training.states import JobState
from tests.doubles.scripted_workers import ScriptedWorker
from tests.doubles.training_house import name, training_house


async def improve_then_worsen(worker: ScriptedWorker) -> None:
    await worker.train(range(1, 4))
    await worker.save(2)
    await worker.say(WarningRaised(code="SLOW", message="slow"))
    await worker.save(3, is_best=False)
    await worker.export(2)
    await worker.end(TrainerEnded(Outcome.FINISHED, exit_code=0))


async def test_jobs_are_compared_by_what_was_asked_what_came_of_it_and_what_it_took(tmp_path: Path) -> None:
    async with training_house(tmp_path, improve_then_worsen) as house:
        first = await house.over(await house.start(recipe={"seed": 1}))
        second = await house.over(await house.start(recipe={"seed": 2}, parameters={"target": "kind", "widths": [4]}))

        found = await house.desk.compare([second.name, first.name])

        assert [one.job.id for one in found.jobs] == [second.id, first.id]
        asked = {difference.path: difference.values for difference in found.spec_differences}
        assert asked == {"recipe.seed": ("2", "1"), "parameters.widths": ("[4]", "[8, 8]")}
        one = found.jobs[1]
        assert one.tally.latest_evaluation is not None
        assert one.tally.best_evaluation is not None
        assert (one.tally.latest_evaluation.step, one.tally.best_evaluation.step) == (3, 2)
        assert one.tally.num_checkpoints == 2
        assert one.tally.checkpoint_bytes == 4
        assert one.tally.num_warnings == 1
        assert one.elapsed_seconds is not None
        assert one.queued_seconds + one.elapsed_seconds <= 60
        # Both were trained from the same data by the same code.
        assert [difference.path for difference in found.lineage_differences] == []


async def test_a_job_that_has_only_begun_is_compared_as_far_as_it_is(tmp_path: Path) -> None:
    async def begin(worker: ScriptedWorker) -> None:
        await worker.train(range(1, 3))
        await worker.wait(30)
        await worker.end(TrainerEnded(Outcome.STOPPED, exit_code=0))

    async with training_house(tmp_path) as house:
        over = await house.over(await house.start())
        house.launcher.script = begin
        running = await house.start()
        await house.reached(running, JobState.RUNNING)
        waiting = await house.start()

        found = await house.desk.compare([over.name, running.name, waiting.name])

        assert found.jobs[1].tally.latest_evaluation is None
        assert found.jobs[1].elapsed_seconds is not None
        assert found.jobs[2].elapsed_seconds is None
        origins = {difference.path: difference.values for difference in found.lineage_differences}
        assert origins["code_version"] == ("1", "", "")


async def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    async with training_house(tmp_path) as house:
        job = await house.start()

        with pytest.raises(InvalidSpec, match="2 to 20"):
            await house.desk.compare([job.name])
        with pytest.raises(InvalidSpec, match="2 to 20"):
            await house.desk.compare([name(f"j{n}") for n in range(MOST_JOBS + 1)])
        with pytest.raises(InvalidSpec, match="once"):
            await house.desk.compare([job.name, job.name])
        with pytest.raises(JobNotFound):
            await house.desk.compare([job.name, name("nobody")])


SIDES = st.lists(st.dictionaries(st.sampled_from("abcd"), st.sampled_from(["1", "2"])), min_size=2, max_size=5)


@given(SIDES)
def test_exactly_what_is_not_the_same_everywhere_is_a_difference(sides: list[dict[str, str]]) -> None:
    found = {difference.path: difference.values for difference in differences(sides)}

    for path in "abcd":
        values = tuple(side.get(path, "") for side in sides)
        assert found.get(path, values) == values
        assert (path in found) == (len({*values}) > 1)
