"""A real MLflow tracking server, in an environment of its own, beside a house that trains."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from headrace_server.settings import SinkSettings, TrainingSettings
from headrace_server.training.session import Outcome, TrainerEnded
from headrace_server.training.sinks.mlflow import MLFLOW, MlflowOptions, MlflowSink
from headrace_server.training.sinks.sink import Batch, Figures, Note, Run, SinkRefused, SinkUnavailable, StateNote
from headrace_server.training.states import JobState
from tests.doubles.mlflow_server import PACKAGES, MlflowServer, mlflow_running
from tests.doubles.scripted_workers import ScriptedWorker
from tests.doubles.training_house import PATIENT, training_house

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
RUN = Run("j1", NOON, "models/m", "datasets/d/versions/1", "tabular", {"recipe.seed": "7"}, {"team": "green"})
NUM_STEPS, REQUEST_SECONDS = 200, 5


@pytest.fixture(scope="session")
def mlflow_python() -> Path:
    """A Python that has MLflow and nothing of Headrace."""
    return PACKAGES.python()


def following(server: MlflowServer, **changes: Any) -> TrainingSettings:
    options = {"url": server.url, "experiment": "digits", "request_seconds": REQUEST_SECONDS}
    sink = SinkSettings.model_validate(
        {"kind": "mlflow", "options": options, "period_seconds": 0, "batch_entries": 20, **changes}
    )
    return PATIENT.model_copy(update={"sinks": (sink,), "cancel_grace_seconds": 20})


async def eventually(look: Callable[[], Any], seconds: float = 120) -> Any:
    """What `look` finds once it finds something."""
    async with asyncio.timeout(seconds):
        while True:
            try:
                if found := await look():
                    return found
            except httpx.HTTPError:
                pass
            await asyncio.sleep(0.05)


async def finished_run(server: MlflowServer) -> dict[str, Any]:
    async def look() -> dict[str, Any] | None:
        runs = await server.runs("digits")
        return next((run for run in runs if run["info"]["status"] in ("FINISHED", "FAILED", "KILLED")), None)

    found: dict[str, Any] = await eventually(look)
    return found


def tags_of(run: dict[str, Any]) -> dict[str, str]:
    return {tag["key"]: tag["value"] for tag in run["data"]["tags"]}


async def train_long(worker: ScriptedWorker) -> None:
    await worker.train(range(1, NUM_STEPS + 1))
    await worker.save(NUM_STEPS)
    await worker.export(NUM_STEPS)
    await worker.end(TrainerEnded(Outcome.FINISHED, exit_code=0))


async def test_nothing_is_lost_when_the_tracking_server_is_killed_in_the_middle_and_the_job_does_not_notice(
    mlflow_python: Path, tmp_path: Path
) -> None:
    async with mlflow_running(mlflow_python, tmp_path / "mlflow") as server:
        async with training_house(tmp_path / "house", train_long, following(server), [MLFLOW]) as house:
            job = await house.start(labels={"team": "green"})
            await eventually(lambda: server.runs("digits"))
            await server.kill()
            over = await house.over(job)  # while there is nobody to tell
            assert over.state is JobState.SUCCEEDED
            await server.start()
            run = await finished_run(server)

        history = await server.history(run["info"]["run_id"], "train/loss")
        tags = tags_of(run)
        parameters = {one["key"]: one["value"] for one in run["data"]["params"]}

    assert [step for step, _ in history] == list(range(1, NUM_STEPS + 1))
    assert [value for _, value in history] == pytest.approx([1 / step for step in range(1, NUM_STEPS + 1)])
    assert run["info"]["status"] == "FINISHED"
    assert run["info"]["run_name"] == job.id
    assert tags["headrace.state"] == "SUCCEEDED"
    assert tags["headrace.model_version"] == "models/flowers/versions/1"
    assert tags["label.team"] == "green"
    assert parameters["dataset_digest"] == job.spec.dataset_digest
    assert parameters["recipe.seed"] == str(job.spec.recipe.seed)


async def test_a_house_that_dies_between_telling_and_noting_tells_again_and_nothing_is_there_twice(
    mlflow_python: Path, tmp_path: Path
) -> None:
    async with mlflow_running(mlflow_python, tmp_path / "mlflow") as server:
        async with training_house(tmp_path / "house", train_long, following(server), [MLFLOW]) as house:
            job = await house.start()
            await house.over(job)
            await finished_run(server)
            async with house.database._engine.begin() as connection:  # as if nothing had been noted
                await connection.exec_driver_sql("UPDATE sink_cursors SET sequence = 0, is_complete = 0")
            await house.restart()
            await house.desk.drain()
        (run,) = await server.runs("digits")
        history = await server.history(run["info"]["run_id"], "train/loss")

    assert [step for step, _ in history] == list(range(1, NUM_STEPS + 1))


async def test_a_tracking_server_that_answers_nothing_slows_no_job(mlflow_python: Path, tmp_path: Path) -> None:
    async with mlflow_running(mlflow_python, tmp_path / "mlflow") as server:
        async with training_house(
            tmp_path / "house", train_long, following(server, deadline_seconds=60), [MLFLOW]
        ) as house:
            server.hold()
            try:
                # A step that waited for it would wait for the whole of `request_seconds`, and there are 200.
                async with asyncio.timeout(NUM_STEPS * REQUEST_SECONDS / 4):
                    over = await house.over(await house.start())
            finally:
                server.release()

        assert over.state is JobState.SUCCEEDED


@pytest.fixture(scope="module")
def server(mlflow_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """One that stays up, for the questions about single calls."""
    loop = asyncio.new_event_loop()
    context = mlflow_running(mlflow_python, tmp_path_factory.mktemp("mlflow"))
    running = loop.run_until_complete(context.__aenter__())
    yield running
    loop.run_until_complete(context.__aexit__(None, None, None))
    loop.close()


@pytest.fixture
def open_sink() -> Iterator[Callable[..., MlflowSink]]:
    """Opens sinks, and closes them after the test."""
    with contextlib.ExitStack() as opened:

        def open_one(url: str = "http://127.0.0.1:1", experiment: str = "any") -> MlflowSink:
            return opened.enter_context(contextlib.closing(MlflowSink(MlflowOptions(url=url, experiment=experiment))))

        yield open_one


async def test_numbers_that_are_not_finite_arrive_as_they_are(
    server: MlflowServer, open_sink: Callable[..., MlflowSink]
) -> None:
    sink = open_sink(server.url, "odd-numbers")
    values = {"a": float("nan"), "b": float("inf"), "c": float("-inf")}
    await asyncio.to_thread(sink.write, Batch(RUN, [Figures(1, NOON, 1, values)]))

    (run,) = await server.runs("odd-numbers")
    found = {name: (await server.history(run["info"]["run_id"], name))[0][1] for name in values}
    assert str(found["a"]).lower() == "nan"
    assert float(found["b"]) > 1e300
    assert float(found["c"]) < -1e300


async def test_more_figures_than_one_request_may_hold_are_divided(
    server: MlflowServer, open_sink: Callable[..., MlflowSink]
) -> None:
    sink = open_sink(server.url, "many")
    entries = [Figures(n, NOON, n, {f"time/part {part}%": float(n) for part in range(12)}) for n in range(1, 301)]
    await asyncio.to_thread(sink.write, Batch(RUN, entries))

    (run,) = await server.runs("many")
    history = await server.history(run["info"]["run_id"], "time/part 7_")
    assert history == [(n, float(n)) for n in range(1, 301)]


async def test_long_texts_are_cut_to_what_mlflow_takes(
    server: MlflowServer, open_sink: Callable[..., MlflowSink]
) -> None:
    sink = open_sink(server.url, "long")
    run = replace(RUN, parameters={"k" * 400: "v" * 10_000})
    await asyncio.to_thread(sink.write, Batch(run, [Note(1, NOON, "warning", "w" * 20_000)]))

    (found,) = await server.runs("long")
    (parameter,) = found["data"]["params"]
    assert parameter["key"] == "k" * 250
    assert set(parameter["value"]) == {"v"}
    assert len(tags_of(found)["headrace.warning"]) == 5000


async def test_states_become_mlflows_own(server: MlflowServer, open_sink: Callable[..., MlflowSink]) -> None:
    sink = open_sink(server.url, "states")
    expected = {
        "QUEUED": "SCHEDULED", "RUNNING": "RUNNING", "PAUSED": "SCHEDULED", "CANCELLED": "KILLED",
    }  # fmt: skip
    for number, (state, status) in enumerate(expected.items(), 1):
        note = StateNote(number, NOON, state, "WHY", "", state == "CANCELLED")
        await asyncio.to_thread(sink.write, Batch(RUN, [note]))
        (run,) = await server.runs("states")
        assert run["info"]["status"] == status
    assert run["info"]["end_time"] == int(NOON.timestamp() * 1000)


async def test_a_run_that_somebody_deleted_there_does_not_come_back(
    server: MlflowServer, open_sink: Callable[..., MlflowSink]
) -> None:
    await asyncio.to_thread(open_sink(server.url, "deleted").write, Batch(RUN, [Figures(1, NOON, 1, {"a": 1.0})]))
    (run,) = await server.runs("deleted")
    async with httpx.AsyncClient() as client:
        body = {"run_id": run["info"]["run_id"]}
        assert (await client.post(f"{server.url}/api/2.0/mlflow/runs/delete", json=body)).is_success

    with pytest.raises(SinkRefused):
        await asyncio.to_thread(open_sink(server.url, "deleted").write, Batch(RUN, [Figures(2, NOON, 2, {"a": 1.0})]))
    assert await server.runs("deleted") == []


def test_nobody_there_is_a_sink_that_is_away(open_sink: Callable[..., MlflowSink]) -> None:
    sink = open_sink()

    with pytest.raises(SinkUnavailable, match="ConnectError"):
        sink.write(Batch(RUN, [Figures(1, NOON, 1, {"a": 1.0})]))


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (500, "broken", SinkUnavailable),
        (503, "starting", SinkUnavailable),
        (429, "too many", SinkUnavailable),
        (401, "who are you", SinkUnavailable),
        (200, "<html>a proxy's page</html>", SinkUnavailable),
        (200, "[]", SinkUnavailable),
        (302, "", SinkUnavailable),
        (400, '{"error_code": "INVALID_PARAMETER_VALUE"}', SinkRefused),
    ],
)
def test_what_may_pass_is_told_from_what_will_not(
    open_sink: Callable[..., MlflowSink], status: int, body: str, error: type[Exception]
) -> None:
    sink = open_sink()
    sink.close()
    sink._client = httpx.Client(
        base_url="http://127.0.0.1:1", transport=httpx.MockTransport(lambda _: httpx.Response(status, text=body))
    )

    with pytest.raises(error):
        sink.write(Batch(RUN, [Figures(1, NOON, 1, {"a": 1.0})]))


def test_credentials_are_taken_from_where_mlflows_own_client_has_them(
    open_sink: Callable[..., MlflowSink], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "secret")

    sink = open_sink()

    assert sink._client.headers["Authorization"] == "Bearer secret"
