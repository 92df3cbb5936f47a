"""An agent that is told to stop, or whose server leaves, ends its attempt and loses nothing of it."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from headrace_server.trainers.reports import PhaseChanged, StepCompleted
from headrace_server.training.events import CheckpointSaved
from headrace_server.training.session import Outcome, TrainerEnded
from tests.doubles.agent_at_work import (
    FINISHED,
    STOPPED,
    TRAINING,
    attempt,
    children_of,
    has_child,
    is_training,
    runs,
    step,
    working,
)
from tests.doubles.moody_store import MoodyStore
from tests.doubles.until import until
from tests.doubles.worker_server import Ledger, WorkerServer, serving

pytestmark = pytest.mark.usefixtures("subreaper")


async def test_a_graceful_stop_ends_with_a_checkpoint(tmp_path: Path, socket: Path) -> None:
    server = WorkerServer()
    made = await attempt(tmp_path, socket, [TRAINING, ["wait_stop"], ["checkpoint", 5, False], STOPPED])
    async with serving(server, socket), working(made.agent()) as task:
        await server.until(is_training)

        server.stop_worker(kill=False, grace_seconds=20)
        await asyncio.wait_for(task, 60)

    assert [saved.step for saved in server.ledger.of(CheckpointSaved)] == [5]
    assert server.ledger.end == TrainerEnded(Outcome.STOPPED, exit_code=0)


async def test_a_trainer_that_ignores_a_stop_is_killed_when_the_grace_is_over(tmp_path: Path, socket: Path) -> None:
    server = WorkerServer()
    made = await attempt(tmp_path, socket, [["spawn", "session"], TRAINING, ["ignore_stop"]])
    async with serving(server, socket), working(made.agent()) as task:
        await server.until(has_child)

        server.stop_worker(kill=False, grace_seconds=0.3)
        await asyncio.wait_for(task, 60)

    end = server.ledger.end
    assert end is not None
    assert (end.outcome, end.signal, end.num_killed) == (Outcome.STOPPED, "SIGKILL", 2)
    assert not any(psutil.pid_exists(child) for child in children_of(server))


async def test_a_kill_may_follow_a_graceful_stop(tmp_path: Path, socket: Path) -> None:
    server = WorkerServer()
    made = await attempt(tmp_path, socket, [TRAINING, ["ignore_stop"]])
    async with serving(server, socket), working(made.agent()) as task:
        await server.until(is_training)

        server.stop_worker(kill=False, grace_seconds=600)
        server.stop_worker(kill=True)
        await asyncio.wait_for(task, 60)

    assert server.ledger.end is not None
    assert server.ledger.end.outcome == Outcome.STOPPED


async def test_leaving_ends_with_a_checkpoint_like_a_stop(tmp_path: Path, socket: Path) -> None:
    server = WorkerServer()
    made = await attempt(tmp_path, socket, [TRAINING, ["wait_stop"], ["checkpoint", 5, False], STOPPED])
    agent = made.agent()
    async with serving(server, socket), working(agent) as task:
        await server.until(is_training)

        agent.leave()
        assert await asyncio.wait_for(task, 60)

    assert server.ledger.end == TrainerEnded(Outcome.STOPPED, exit_code=0)


@pytest.mark.parametrize("code", [grpc.StatusCode.ABORTED, grpc.StatusCode.NOT_FOUND])
async def test_a_dismissed_agent_kills_its_trainer_at_once(tmp_path: Path, socket: Path, code: grpc.StatusCode) -> None:
    server = WorkerServer()
    made = await attempt(tmp_path, socket, [["spawn", "session"], TRAINING, ["ignore_stop"]])
    async with serving(server, socket), working(made.agent()) as task:
        await server.until(has_child)
        trainer = server.beats[-1]
        assert runs(trainer)

        await server.abort(code, "no more")
        assert not await asyncio.wait_for(task, 60)

    assert not psutil.pid_exists(trainer)
    assert not any(psutil.pid_exists(child) for child in children_of(server))
    assert server.ledger.end is None


async def test_without_a_server_for_long_the_trainer_ends_with_a_checkpoint(tmp_path: Path, socket: Path) -> None:
    script = [TRAINING, ["wait_stop"], ["checkpoint", 5, False], STOPPED]
    made = await attempt(tmp_path, socket, script, detached_seconds=0.5)

    async with working(made.agent(farewell_seconds=0.2)) as task:
        is_kept = await asyncio.wait_for(task, 60)

    assert not is_kept
    assert [key for key in await made.store.list("checkpoints/j/") if key.endswith("manifest.json")]


async def test_a_server_that_restarts_all_the_time_misses_nothing(tmp_path: Path, socket: Path) -> None:
    script = [item for number in range(1, 60) for item in (step(number), ["sleep", 0.02])]
    made = await attempt(tmp_path, socket, [*script, ["export"], FINISHED])
    ledger = Ledger()

    async with working(made.agent()) as task:
        while not task.done():
            server = WorkerServer(ledger)
            num_kept = len(ledger.reports)
            async with serving(server, socket):
                await asyncio.wait([task], timeout=0.25)
                # However slow the machine is, each server gets something done.
                await until(lambda num_kept=num_kept: task.done() or len(ledger.reports) > num_kept)  # type: ignore[misc]
        assert task.result()

    assert [report.step for report in ledger.of(StepCompleted)] == list(range(1, 60))
    assert ledger.end is not None
    assert ledger.end.outcome == Outcome.FINISHED


async def test_a_connection_lost_at_every_report_loses_none(tmp_path: Path, socket: Path) -> None:
    server = WorkerServer()
    seen: set[int] = set()

    def hang_up(report: Any) -> bool:
        is_new = report.number not in seen
        seen.add(report.number)
        return is_new

    server.hang_up_after = hang_up
    made = await attempt(tmp_path, socket, [step(1), ["checkpoint", 1, True], step(2), ["export"], FINISHED])
    async with serving(server, socket), working(made.agent()) as task:
        assert await asyncio.wait_for(task, 60)

    assert [report.step for report in server.ledger.of(StepCompleted)] == [1, 2]
    assert isinstance(server.ledger.contents[-1], TrainerEnded)


async def test_the_end_waits_for_a_server_that_is_away(tmp_path: Path, socket: Path) -> None:
    made = await attempt(tmp_path, socket, [["export"], FINISHED])
    async with working(made.agent()) as task:
        await until((tmp_path / "store/objects/exports/j/1/manifest.json").exists)
        done, _ = await asyncio.wait([task], timeout=1)
        assert not done, "nobody has taken its reports yet"

        server = WorkerServer()
        async with serving(server, socket):
            assert await asyncio.wait_for(task, 60)

    assert server.ledger.end is not None
    assert server.ledger.end.outcome == Outcome.FINISHED


async def test_a_cancelled_agent_leaves_no_process(tmp_path: Path, socket: Path) -> None:
    server = WorkerServer()
    made = await attempt(tmp_path, socket, [["spawn", "hidden"], TRAINING, ["ignore_stop"]])
    async with serving(server, socket):
        async with working(made.agent()):
            await server.until(has_child)

        assert not any(psutil.pid_exists(child) for child in [server.beats[-1], *children_of(server)])


async def test_a_kill_does_not_wait_for_a_slow_store(tmp_path: Path, socket: Path) -> None:
    server = WorkerServer()
    made = await attempt(tmp_path, socket, [TRAINING, ["checkpoint", 5, True], ["ignore_stop"]])
    store = MoodyStore(tmp_path / "store")
    store.may_put.clear()
    async with serving(server, socket), working(made.agent(store)) as task:
        await server.until(is_training)

        server.stop_worker(kill=True)
        assert await asyncio.wait_for(task, 60)

    assert server.ledger.end is not None
    assert server.ledger.end.outcome == Outcome.STOPPED
    assert not server.ledger.of(CheckpointSaved)


async def test_a_stopped_agent_waits_only_so_long_for_a_slow_store(tmp_path: Path, socket: Path) -> None:
    server = WorkerServer()
    made = await attempt(tmp_path, socket, [TRAINING, ["wait_stop"], ["checkpoint", 5, True], STOPPED])
    store = MoodyStore(tmp_path / "store")
    store.may_put.clear()
    async with serving(server, socket), working(made.agent(store, publish_grace_seconds=0.3)) as task:
        await server.until(is_training)
        trainer = server.beats[-1]

        server.stop_worker(kill=False, grace_seconds=60)
        await until(lambda: not runs(trainer))
        server.stop_worker(kill=False, grace_seconds=0.1)
        assert await asyncio.wait_for(task, 50)

    assert server.ledger.end == TrainerEnded(Outcome.STOPPED, exit_code=0)


async def test_a_stop_while_data_are_fetched_is_obeyed_at_once(
    tmp_path: Path, socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stuck(self: MoodyStore, key: str) -> Path:
        await asyncio.sleep(3600)
        raise AssertionError

    monkeypatch.setattr(MoodyStore, "local_path", stuck)
    server = WorkerServer()
    made = await attempt(tmp_path, socket, [])
    async with serving(server, socket), working(made.agent(MoodyStore(tmp_path / "store"))) as task:
        await server.until(lambda server: PhaseChanged(phase="fetching_data") in server.ledger.contents)

        server.stop_worker(kill=False, grace_seconds=600)
        assert await asyncio.wait_for(task, 60)

    assert server.ledger.end == TrainerEnded(Outcome.STOPPED)
