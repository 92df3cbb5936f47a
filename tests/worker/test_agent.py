"""An agent brings its attempt to an end that the server knows, whatever its trainer does."""

import asyncio
import ctypes
import json
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from headrace_server.launchers.processes import is_alive
from headrace_server.trainers.reports import PhaseChanged, StepCompleted, WarningRaised
from headrace_server.training.assignment import PublishedExport
from headrace_server.training.events import CheckpointSaved, LogLine, LogSource
from headrace_server.training.session import Exported, Outcome, TrainerEnded
from headrace_server.worker.agent import Agent
from headrace_server.worker.memory_counters import MemoryCounters
from headrace_server.worker.process_tree import become_subreaper
from tests.doubles.attempts import DATA, Attempt
from tests.doubles.moody_store import MoodyStore
from tests.doubles.until import until
from tests.doubles.worker_server import Ledger, WorkerServer, serving

FINISHED = ["report", {"kind": "finished"}]
STOPPED = ["report", {"kind": "stopped"}]
FAILED = ["report", {"kind": "failed", "error": "InvalidDataset", "message": "no such column"}]
TRAINING = ["report", {"kind": "phase_changed", "phase": "training"}]


def step(number: int) -> list[Any]:
    figures = {"epoch": 1, "fraction": 0.5, "loss": 1.5, "learning_rate": 0.1, "samples_per_second": 9}
    return ["report", {"kind": "step_completed", "step": number, **figures}]


@pytest.fixture(autouse=True)
def subreaper() -> Iterator[None]:
    """As the agent's own program does, but not for the rest of the tests."""
    become_subreaper()
    yield
    ctypes.CDLL(None).prctl(36, 0, 0, 0, 0)


@pytest.fixture
def socket() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hr") as folder:
        yield Path(folder) / "w.sock"


@asynccontextmanager
async def working(agent: Agent) -> AsyncIterator["asyncio.Task[bool]"]:
    """An agent at work; cancelled at the end if it still is."""
    task = asyncio.create_task(agent.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def attempt(tmp_path: Path, socket: Path, script: Sequence[Any], **changes: Any) -> Attempt:
    made = Attempt(tmp_path, socket, script, **changes)
    await made.prepare()
    return made


async def work(
    tmp_path: Path, socket: Path, script: Sequence[Any], **changes: Any
) -> tuple[TrainerEnded, WorkerServer]:
    """Let an agent make an attempt with a server that only keeps."""
    server = WorkerServer()
    made = await attempt(tmp_path, socket, script, **changes)
    async with serving(server, socket), working(made.agent()) as task:
        assert await asyncio.wait_for(task, 30)
        return await server.ended(), server


def children_of(server: WorkerServer) -> list[int]:
    lines = [line.text for line in server.ledger.of(LogLine)]
    return [int(line.removeprefix("child ")) for line in lines if line.startswith("child ")]


def is_training(server: WorkerServer) -> bool:
    return PhaseChanged(phase="training") in server.ledger.contents and server.beats[-1] > 0


def runs(pid: int) -> bool:
    try:
        return is_alive(psutil.Process(pid))
    except psutil.NoSuchProcess:
        return False


async def test_a_training_goes_its_whole_way(tmp_path: Path, socket: Path) -> None:
    script = [TRAINING, step(1), ["checkpoint", 1, True], step(2), ["print", "hello"], ["export"], FINISHED]

    end, server = await work(tmp_path, socket, script)

    assert end == TrainerEnded(Outcome.FINISHED, exit_code=0, last_lines=("hello",))
    phases = [phase.phase for phase in server.ledger.of(PhaseChanged)]
    assert phases == ["starting", "fetching_data", "training", "publishing"]
    assert [report.step for report in server.ledger.of(StepCompleted)] == [1, 2]
    assert LogLine(source=LogSource.STDOUT, text="hello") in server.ledger.contents
    assert isinstance(server.ledger.contents[-1], TrainerEnded)
    assert max(server.beats) > 0


async def test_what_a_training_made_is_in_the_store_when_it_is_told(tmp_path: Path, socket: Path) -> None:
    script = [["checkpoint", 7, True], ["export"], FINISHED]

    _, server = await work(tmp_path, socket, script)

    store = Attempt(tmp_path, socket).store
    (saved,) = server.ledger.of(CheckpointSaved)
    assert saved.uri.startswith("checkpoints/j/000000000007-")
    assert (saved.step, saved.is_best, saved.size_bytes) == (7, True, 7 + len('{"step": 7}'))
    assert (await store.fetch(saved.uri, tmp_path / "m")).digest == saved.digest
    (exported,) = server.ledger.of(Exported)
    assert exported.manifest_key == "exports/j/1/manifest.json"
    published = PublishedExport.model_validate_json(await store.get_bytes(exported.manifest_key))
    (artifact,) = published.artifacts
    assert await store.get_bytes(artifact.key) == b"onnx"
    assert published.metrics == {"accuracy": 0.5}
    assert not (tmp_path / "attempt" / "workspace" / "trainer").exists()


async def test_a_trainer_that_says_why_it_failed_is_believed(tmp_path: Path, socket: Path) -> None:
    end, _ = await work(tmp_path, socket, [["print", "evidence"], FAILED, ["exit", 3]])

    assert (end.outcome, end.exit_code, end.error, end.message) == (
        Outcome.FAILED,
        3,
        "InvalidDataset",
        "no such column",
    )
    assert end.last_lines == ("evidence",)


@pytest.mark.parametrize("code", [0, 1, 77])
async def test_a_trainer_that_exits_without_a_word_has_died(tmp_path: Path, socket: Path, code: int) -> None:
    end, _ = await work(tmp_path, socket, [TRAINING, ["exit", code]])

    assert (end.outcome, end.exit_code, end.signal) == (Outcome.DIED, code, "")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
async def test_a_trainer_that_is_killed_has_died_of_that_signal(tmp_path: Path, socket: Path, number: int) -> None:
    end, _ = await work(tmp_path, socket, [TRAINING, ["signal", number]])

    assert (end.outcome, end.exit_code, end.signal) == (Outcome.DIED, None, signal.Signals(number).name)
    assert not end.out_of_memory, "a signal alone proves nothing about memory"
    assert end.num_killed == 0


async def test_a_half_written_report_is_evidence_and_no_crash(tmp_path: Path, socket: Path) -> None:
    end, server = await work(tmp_path, socket, [step(1), ["raw", '{"kind": "step_comp'], ["exit", 1]])

    assert (end.outcome, end.exit_code) == (Outcome.DIED, 1)
    assert any("step_comp" in line for line in end.last_lines)
    assert [warning.code for warning in server.ledger.of(WarningRaised)] == ["NOT_A_REPORT"]


async def test_garbage_between_reports_is_told_and_passed_over(tmp_path: Path, socket: Path) -> None:
    garbage = [["raw", "\0\x01 rubbish\n"], ["raw", "{}\n"], ["raw", '{"kind": "step_completed", "step": 1}\n']] * 10
    huge = step(2**70)

    end, server = await work(tmp_path, socket, [*garbage, huge, ["export"], FINISHED])

    assert end.outcome == Outcome.FINISHED
    assert len(server.ledger.of(WarningRaised)) == 1
    assert 1 <= len([line for line in server.ledger.of(LogLine) if line.source is LogSource.WORKER]) <= 10


async def test_an_endless_line_on_the_report_pipe_is_survived(tmp_path: Path, socket: Path) -> None:
    end, _ = await work(tmp_path, socket, [["raw", "x" * 5_000_000], ["raw", "\n"], ["export"], FINISHED])

    assert end.outcome == Outcome.FINISHED


async def test_a_flood_on_standard_output_neither_blocks_nor_is_passed_on_in_full(tmp_path: Path, socket: Path) -> None:
    end, server = await work(tmp_path, socket, [["flood", 300_000], ["export"], FINISHED])

    lines = server.ledger.of(LogLine)
    assert end.outcome == Outcome.FINISHED
    assert len(lines) < 5000
    assert any("left out" in line.text for line in lines)
    assert end.last_lines == tuple(f"flood {number}" for number in range(299_900, 300_000))


async def test_a_finished_trainer_without_an_export_is_at_fault(tmp_path: Path, socket: Path) -> None:
    end, _ = await work(tmp_path, socket, [FINISHED])

    assert (end.outcome, end.error) == (Outcome.FAILED, "NoExport")


async def test_an_export_that_is_not_what_it_says_is_told(tmp_path: Path, socket: Path) -> None:
    outside = ["report", {"kind": "export_written", "folder": str(tmp_path)}]

    end, _ = await work(tmp_path, socket, [outside, FINISHED])

    assert end.outcome == Outcome.DIED
    assert "outside" in end.last_lines[-1]
    assert (tmp_path / "store").is_dir()


@pytest.mark.parametrize("kind", ["plain", "session", "hidden", "stubborn"])
async def test_children_that_outlive_the_trainer_are_ended_and_counted(tmp_path: Path, socket: Path, kind: str) -> None:
    end, server = await work(tmp_path, socket, [["spawn", kind], ["export"], FINISHED])

    children = children_of(server)
    assert end.outcome == Outcome.FINISHED
    assert end.num_killed == len(children) == 1
    assert not any(psutil.pid_exists(child) for child in children), "not even a zombie stays"


async def test_a_trainer_that_lingers_after_its_last_word_is_ended(tmp_path: Path, socket: Path) -> None:
    end, _ = await work(tmp_path, socket, [["export"], FINISHED, ["sleep", 600]])

    assert (end.outcome, end.signal, end.num_killed) == (Outcome.FINISHED, "SIGKILL", 1)


async def test_a_trainer_that_closes_its_report_pipe_is_waited_for(tmp_path: Path, socket: Path) -> None:
    end, _ = await work(tmp_path, socket, [["export"], FINISHED, ["stop_reports"], ["sleep", 0.3]])

    assert (end.outcome, end.num_killed) == (Outcome.FINISHED, 0)


async def test_a_graceful_stop_ends_with_a_checkpoint(tmp_path: Path, socket: Path) -> None:
    server = WorkerServer()
    made = await attempt(tmp_path, socket, [TRAINING, ["wait_stop"], ["checkpoint", 5, False], STOPPED])
    async with serving(server, socket), working(made.agent()) as task:
        await server.until(is_training)

        server.stop_worker(kill=False, grace_seconds=20)
        await asyncio.wait_for(task, 10)

    assert [saved.step for saved in server.ledger.of(CheckpointSaved)] == [5]
    assert server.ledger.end == TrainerEnded(Outcome.STOPPED, exit_code=0)


async def test_a_trainer_that_ignores_a_stop_is_killed_when_the_grace_is_over(tmp_path: Path, socket: Path) -> None:
    server = WorkerServer()
    made = await attempt(tmp_path, socket, [["spawn", "session"], TRAINING, ["ignore_stop"]])
    async with serving(server, socket), working(made.agent()) as task:
        await server.until(is_training)

        server.stop_worker(kill=False, grace_seconds=0.3)
        await asyncio.wait_for(task, 10)

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
        await asyncio.wait_for(task, 10)

    assert server.ledger.end is not None
    assert server.ledger.end.outcome == Outcome.STOPPED


async def test_leaving_ends_with_a_checkpoint_like_a_stop(tmp_path: Path, socket: Path) -> None:
    server = WorkerServer()
    made = await attempt(tmp_path, socket, [TRAINING, ["wait_stop"], ["checkpoint", 5, False], STOPPED])
    agent = made.agent()
    async with serving(server, socket), working(agent) as task:
        await server.until(is_training)

        agent.leave()
        assert await asyncio.wait_for(task, 10)

    assert server.ledger.end == TrainerEnded(Outcome.STOPPED, exit_code=0)


@pytest.mark.parametrize("code", [grpc.StatusCode.ABORTED, grpc.StatusCode.NOT_FOUND])
async def test_a_dismissed_agent_kills_its_trainer_at_once(tmp_path: Path, socket: Path, code: grpc.StatusCode) -> None:
    server = WorkerServer()
    made = await attempt(tmp_path, socket, [["spawn", "session"], TRAINING, ["ignore_stop"]])
    async with serving(server, socket), working(made.agent()) as task:
        await server.until(is_training)
        trainer = server.beats[-1]
        assert runs(trainer)

        await server.abort(code, "no more")
        assert not await asyncio.wait_for(task, 10)

    assert not psutil.pid_exists(trainer)
    assert not any(psutil.pid_exists(child) for child in children_of(server))
    assert server.ledger.end is None


async def test_without_a_server_for_long_the_trainer_ends_with_a_checkpoint(tmp_path: Path, socket: Path) -> None:
    script = [TRAINING, ["wait_stop"], ["checkpoint", 5, False], STOPPED]
    made = await attempt(tmp_path, socket, script, detached_seconds=0.5)

    async with working(made.agent(farewell_seconds=0.2)) as task:
        is_kept = await asyncio.wait_for(task, 20)

    assert not is_kept
    assert [key for key in await made.store.list("checkpoints/j/") if key.endswith("manifest.json")]


async def test_a_server_that_restarts_all_the_time_misses_nothing(tmp_path: Path, socket: Path) -> None:
    script = [item for number in range(1, 60) for item in (step(number), ["sleep", 0.02])]
    made = await attempt(tmp_path, socket, [*script, ["export"], FINISHED])
    ledger = Ledger()

    async with working(made.agent()) as task:
        while not task.done():
            server = WorkerServer(ledger)
            async with serving(server, socket):
                await asyncio.wait([task], timeout=0.25)
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
        assert await asyncio.wait_for(task, 30)

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
            assert await asyncio.wait_for(task, 20)

    assert server.ledger.end is not None
    assert server.ledger.end.outcome == Outcome.FINISHED


async def test_a_cancelled_agent_leaves_no_process(tmp_path: Path, socket: Path) -> None:
    server = WorkerServer()
    made = await attempt(tmp_path, socket, [["spawn", "hidden"], TRAINING, ["ignore_stop"]])
    async with serving(server, socket):
        async with working(made.agent()):
            await server.until(is_training)

        assert not any(psutil.pid_exists(child) for child in [server.beats[-1], *children_of(server)])


async def test_the_trainer_sees_the_verified_data(tmp_path: Path, socket: Path) -> None:
    _, server = await work(tmp_path, socket, [["resume_facts"], ["export"], FINISHED])

    text = [line.text for line in server.ledger.of(LogLine)]
    assert text[0] == "resumed from None"
    assert text[1] == f"data {DATA.decode().splitlines()[0]}"


@pytest.mark.parametrize("change", [{"dataset_digest": "sha256:" + "0" * 64}, {"dataset_key": "datasets/gone"}])
async def test_damaged_or_missing_data_fails_the_job(tmp_path: Path, socket: Path, change: dict[str, str]) -> None:
    end, _ = await work(tmp_path, socket, [FINISHED], **change)

    assert (end.outcome, end.error) == (Outcome.FAILED, "InvalidDataset")
    assert "content" in end.message


async def test_a_trainer_that_cannot_be_started_has_died_of_that(tmp_path: Path, socket: Path) -> None:
    server = WorkerServer()
    made = await attempt(tmp_path, socket, [])
    async with serving(server, socket), working(made.agent(trainer_command=("/no/such/program",))) as task:
        await asyncio.wait_for(task, 10)

    assert server.ledger.end is not None
    assert server.ledger.end.outcome == Outcome.DIED
    assert "No such file" in server.ledger.end.last_lines[-1]


async def test_what_a_dying_trainer_has_saved_is_published_before_its_end_is_told(tmp_path: Path, socket: Path) -> None:
    end, server = await work(tmp_path, socket, [["checkpoint", 5, True], ["exit", 9]])

    assert (end.outcome, end.exit_code) == (Outcome.DIED, 9)
    assert [saved.step for saved in server.ledger.of(CheckpointSaved)] == [5]


async def test_a_kill_does_not_wait_for_a_slow_store(tmp_path: Path, socket: Path) -> None:
    server = WorkerServer()
    made = await attempt(tmp_path, socket, [TRAINING, ["checkpoint", 5, True], ["ignore_stop"]])
    store = MoodyStore(tmp_path / "store")
    store.may_put.clear()
    async with serving(server, socket), working(made.agent(store)) as task:
        await server.until(is_training)

        server.stop_worker(kill=True)
        assert await asyncio.wait_for(task, 5)

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

        server.stop_worker(kill=False, grace_seconds=0.5)
        assert await asyncio.wait_for(task, 5)

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
        assert await asyncio.wait_for(task, 5)

    assert server.ledger.end == TrainerEnded(Outcome.STOPPED)


class Counters(MemoryCounters):
    """Says at each look that one more process was killed for memory."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.count, self.step = 3, step

    def num_killed(self) -> int:
        self.count += self.step
        return self.count


@pytest.mark.parametrize("grows", [True, False])
async def test_memory_is_blamed_when_the_kernels_counter_grew(tmp_path: Path, socket: Path, grows: bool) -> None:
    server = WorkerServer()
    made = await attempt(tmp_path, socket, [TRAINING, ["signal", signal.SIGKILL]])
    async with serving(server, socket), working(made.agent(counters=Counters(int(grows)))) as task:
        await asyncio.wait_for(task, 10)

    assert server.ledger.end is not None
    assert server.ledger.end.out_of_memory is grows


async def test_memory_is_not_blamed_for_a_training_that_went_well(tmp_path: Path, socket: Path) -> None:
    server = WorkerServer()
    made = await attempt(tmp_path, socket, [["export"], FINISHED])
    async with serving(server, socket), working(made.agent(counters=Counters(1))) as task:
        await asyncio.wait_for(task, 10)

    assert server.ledger.end == TrainerEnded(Outcome.FINISHED, exit_code=0)


async def test_a_flood_of_reports_arrives_whole(tmp_path: Path, socket: Path) -> None:
    line = json.dumps(step(1)[1]) + "\n"

    _, server = await work(tmp_path, socket, [["raw", line * 5000], ["export"], FINISHED])

    assert len(server.ledger.of(StepCompleted)) == 5000
