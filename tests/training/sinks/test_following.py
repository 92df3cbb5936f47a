from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from headrace_server.settings import SinkSettings, TrainingSettings
from headrace_server.training.job import Job
from headrace_server.training.session import Outcome, TrainerEnded
from headrace_server.training.sinks import follower
from headrace_server.training.sinks.sink import Batch, Figures, Note, StateNote
from headrace_server.training.states import JobState
from tests.doubles.scripted_sink import ScriptedSink
from tests.doubles.scripted_workers import ScriptedWorker
from tests.doubles.training_house import PATIENT, TrainingHouse, training_house
from tests.doubles.until import until


def settings(**changes: object) -> TrainingSettings:
    """Impatient ones, with one sink."""
    sink = SinkSettings.model_validate({"kind": "scripted", "period_seconds": 0, **changes})
    return PATIENT.model_copy(update={"sinks": (sink,)})


@pytest.fixture
def sink(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedSink]:
    monkeypatch.setattr(follower, "FIRST_PAUSE_SECONDS", 0.01)
    scripted = ScriptedSink()
    yield scripted
    scripted.goes_on.set()


async def told_all(house: TrainingHouse, sink: ScriptedSink, job: Job) -> None:
    """Wait until the sink has the whole history of a job that is over."""
    latest = (await house.over(job)).latest_sequence
    await until(lambda: latest in sink.sequences(job.id))


def metric(house: TrainingHouse, name: str, **labels: str) -> float:
    value = house.metrics.registry.get_sample_value(name, {"sink": "scripted", **labels})
    return value or 0.0


async def test_a_sink_is_told_the_whole_history_of_a_job_in_order(tmp_path: Path, sink: ScriptedSink) -> None:
    async with training_house(tmp_path, settings=settings(), kinds=[sink.kind]) as house:
        job = await house.start(labels={"team": "green"})
        await told_all(house, sink, job)

        entries = sink.entries(job.id)
        history = await house.history(job)

        assert [entry.sequence for entry in entries] == [event.sequence for event in history]
        assert [entry.time for entry in entries] == [event.time for event in history]
        states = [entry.state for entry in entries if isinstance(entry, StateNote)]
        assert states == ["QUEUED", "PREPARING", "RUNNING", "FINALIZING", "SUCCEEDED"]
        figures = [entry for entry in entries if isinstance(entry, Figures)]
        losses = [(one.step, one.values["train/loss"]) for one in figures if _is_step(one)]
        assert losses == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
        notes = {entry.kind: entry.text for entry in entries if isinstance(entry, Note)}
        assert notes["model_version"] == "models/flowers/versions/1"
        run = sink.batches[0].run
        assert run.labels == {"team": "green"}
        assert run.parameters["trainer"] == "sketch"
        assert run.parameters["recipe.seed"] == str(job.spec.recipe.seed)
        assert run.parameters["dataset_digest"] == job.spec.dataset_digest
        await until(lambda: metric(house, "headrace_sink_waiting_entries") == 0)
        async with house.database.read() as connection:
            found = (await connection.exec_driver_sql("SELECT sequence, is_complete FROM sink_cursors")).all()
        assert [tuple(row) for row in found] == [(len(history), 1)]


def _is_step(entry: object) -> bool:
    return isinstance(entry, Figures) and "train/loss" in entry.values


async def sequence_of_step(house: TrainingHouse, job: Job, step: int) -> int:
    async for event in house.desk.follow(job.name, 0):
        if event is not None and event.happening.kind == "step_completed" and event.happening.step == step:
            return event.sequence
    raise AssertionError(f"{job.id} ended before step {step}")


async def test_a_sink_goes_on_after_a_restart_without_gaps_or_repeats(tmp_path: Path, sink: ScriptedSink) -> None:
    async def in_two_parts(worker: ScriptedWorker) -> None:
        await worker.train(range(1, 3))
        await worker.wait(30)
        await worker.train(range(3, 5))
        await worker.export(4)
        await worker.end(TrainerEnded(Outcome.FINISHED, exit_code=0))

    async with training_house(tmp_path, in_two_parts, settings(), [sink.kind]) as house:
        job = await house.start()
        latest = await sequence_of_step(house, job, 2)
        await until(lambda: metric(house, "headrace_sink_entries_total", outcome="sent") == latest)

        await house.restart()
        house.launcher.newest(job.id).stopped.set()
        await told_all(house, sink, job)

        latest = (await house.desk.get(job.name)).latest_sequence
        assert sink.sequences(job.id) == list(range(1, latest + 1))
        assert sink.num_opened == 2
        assert sink.num_closed == 1


async def test_what_happened_while_no_server_told_of_it_is_told_by_the_next(tmp_path: Path, sink: ScriptedSink) -> None:
    sink.is_away = True
    async with training_house(tmp_path, settings=settings(), kinds=[sink.kind]) as house:
        job = await house.start()
        over = await house.over(job)
        await house.restart()
        sink.is_away = False
        await told_all(house, sink, job)

        assert over.state is JobState.SUCCEEDED
        assert sink.sequences(job.id) == list(range(1, over.latest_sequence + 1))


async def test_a_sink_that_is_new_follows_the_jobs_that_are_not_over(tmp_path: Path, sink: ScriptedSink) -> None:
    async with training_house(tmp_path) as house:
        earlier = await house.start()
        await house.over(earlier)

        async def rest(worker: ScriptedWorker) -> None:
            await worker.train(range(1, 3))
            await worker.wait(30)
            await worker.end(TrainerEnded(Outcome.FAILED, exit_code=1, error="ValueError", message="no"))

        house.launcher.script = rest
        job = await house.start()
        await house.reached(job, JobState.RUNNING)
        house.settings, house.kinds = settings(), {"scripted": sink.kind}
        await house.restart()
        house.launcher.newest(job.id).stopped.set()
        await told_all(house, sink, job)

        latest = (await house.desk.get(job.name)).latest_sequence
        assert sink.sequences(job.id) == list(range(1, latest + 1))
        assert sink.entries(earlier.id) == []


async def test_a_sink_that_is_away_costs_the_job_nothing_and_misses_nothing(tmp_path: Path, sink: ScriptedSink) -> None:
    sink.is_away = True
    async with training_house(tmp_path, settings=settings(), kinds=[sink.kind]) as house:
        with capture_logs() as lines:
            job = await house.start()
            over = await house.over(job)
            await until(lambda: sink.num_calls >= 3)
            waiting = metric(house, "headrace_sink_waiting_entries")
            sink.is_away = False
            await told_all(house, sink, job)
            await until(lambda: metric(house, "headrace_sink_waiting_entries") == 0)

        assert over.state is JobState.SUCCEEDED
        assert waiting > 0
        assert sink.sequences(job.id) == list(range(1, over.latest_sequence + 1))
        assert metric(house, "headrace_sink_entries_total", outcome="sent") == over.latest_sequence
        assert metric(house, "headrace_sink_failures_total", reason="unavailable") >= 3
        told = [line["event"] for line in lines if line["event"].startswith("training.sink")]
        assert told == ["training.sink_unavailable", "training.sink_recovered"]


async def test_a_sink_that_hangs_holds_up_neither_jobs_nor_the_end_of_the_server(
    tmp_path: Path, sink: ScriptedSink
) -> None:
    sink.goes_on.clear()
    hasty = settings(deadline_seconds=0.05)
    async with training_house(tmp_path, settings=hasty, kinds=[sink.kind]) as house:
        with capture_logs() as lines:
            first = await house.over(await house.start())
            second = await house.over(await house.start())
            await until(lambda: metric(house, "headrace_sink_failures_total", reason="hangs") >= 2)

        assert (first.state, second.state) == (JobState.SUCCEEDED, JobState.SUCCEEDED)
        assert sink.num_calls == 1, "while a call hangs, no other is made"
        (away,) = [line for line in lines if line["event"] == "training.sink_unavailable"]
        assert away["reason"] == "hangs"
    # The block has ended: a hanging thread did not keep the house from closing.


async def test_a_sink_that_comes_back_from_hanging_is_told_the_rest(tmp_path: Path, sink: ScriptedSink) -> None:
    sink.goes_on.clear()
    async with training_house(tmp_path, settings=settings(deadline_seconds=0.05), kinds=[sink.kind]) as house:
        job = await house.start()
        over = await house.over(job)
        await until(lambda: metric(house, "headrace_sink_failures_total", reason="hangs") >= 1)
        sink.goes_on.set()
        await told_all(house, sink, job)

        # The call that came late has kept its batch without anybody hearing of it: that batch comes once more.
        assert sorted({*sink.sequences(job.id)}) == list(range(1, over.latest_sequence + 1))


async def test_what_a_sink_refuses_is_left_out_and_the_rest_goes_on(tmp_path: Path, sink: ScriptedSink) -> None:
    def has_step_2(batch: Batch) -> bool:
        return any(isinstance(entry, Figures) and entry.step == 2 for entry in batch.entries)

    sink.refuses = has_step_2
    async with training_house(tmp_path, settings=settings(batch_entries=1), kinds=[sink.kind]) as house:
        with capture_logs() as lines:
            job = await house.start()
            await told_all(house, sink, job)

        over = await house.desk.get(job.name)
        (refused,) = [line for line in lines if line["event"] == "training.sink_refused"]
        assert over.state is JobState.SUCCEEDED
        assert refused["first"] == refused["last"]
        assert refused["reason"] == "refused"
        left_out = {*range(1, over.latest_sequence + 1)} - {*sink.sequences(job.id)}
        assert left_out == {refused["first"]}
        assert metric(house, "headrace_sink_entries_total", outcome="failed") == 1


async def test_a_sink_that_raises_what_it_likes_is_asked_some_times_and_then_passed_over(
    tmp_path: Path, sink: ScriptedSink
) -> None:
    sink.raises = ZeroDivisionError("a stranger's fault")
    async with training_house(tmp_path, settings=settings(), kinds=[sink.kind]) as house:
        with capture_logs() as lines:
            job = await house.start()
            over = await house.over(job)
            await until(lambda: metric(house, "headrace_sink_entries_total", outcome="failed") == over.latest_sequence)

        assert over.state is JobState.SUCCEEDED
        refused = [line for line in lines if line["event"] == "training.sink_refused"]
        assert {line["reason"] for line in refused} == {"raised"}
        assert "ZeroDivisionError" in refused[0]["error"]
        assert sink.num_calls == follower.TRIES_AFTER_FAULTS * len(refused)


async def test_a_sink_that_was_away_for_longer_than_histories_are_kept_hears_how_much_it_missed(
    tmp_path: Path, sink: ScriptedSink
) -> None:
    async def many(worker: ScriptedWorker) -> None:
        await worker.train(range(1, 151))
        await worker.end(TrainerEnded(Outcome.FAILED, exit_code=1, error="ValueError", message="no"))

    sink.is_away = True
    brief = settings().model_copy(update={"keep_events": 100})
    async with training_house(tmp_path, many, brief, [sink.kind]) as house:
        job = await house.start()
        over = await house.over(job)
        sink.is_away = False
        await told_all(house, sink, job)

        dropped = metric(house, "headrace_sink_entries_total", outcome="dropped")
        assert dropped > 0
        assert sink.sequences(job.id)[-1] == over.latest_sequence
        assert len({*sink.sequences(job.id)}) + dropped == over.latest_sequence


async def test_a_job_that_is_deleted_leaves_no_cursor(tmp_path: Path, sink: ScriptedSink) -> None:
    async with training_house(tmp_path, settings=settings(), kinds=[sink.kind]) as house:
        job = await house.start()
        await told_all(house, sink, job)
        await house.cleaned_up(job)
        await house.desk.delete(job.name)

        async with house.database.read() as connection:
            found = (await connection.exec_driver_sql("SELECT count(*) FROM sink_cursors")).scalar()
        assert found == 0


async def test_what_comes_together_is_told_together(tmp_path: Path, sink: ScriptedSink) -> None:
    async with training_house(tmp_path, settings=settings(period_seconds=3600), kinds=[sink.kind]) as house:
        job = await house.start()
        over = await house.over(job)

        await house.desk.drain()  # which does not wait for more

        assert sink.sequences(job.id) == list(range(1, over.latest_sequence + 1))
        assert sink.num_calls <= 3
