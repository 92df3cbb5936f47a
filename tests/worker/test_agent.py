"""An agent brings its attempt to an end that the server knows, whatever its trainer does."""

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from headrace_server.trainers.reports import PhaseChanged, StepCompleted, WarningRaised
from headrace_server.training.assignment import PublishedExport
from headrace_server.training.events import CheckpointSaved, LogLine, LogSource
from headrace_server.training.session import Exported, Outcome, TrainerEnded
from headrace_server.worker.memory_counters import MemoryCounters
from headrace_server.worker.world import World
from tests.doubles.agent_at_work import (
    FAILED,
    FINISHED,
    TRAINING,
    attempt,
    children_of,
    step,
    work,
    working,
)
from tests.doubles.attempts import DATA, Attempt
from tests.doubles.until import until
from tests.doubles.worker_server import WorkerServer, serving

pytestmark = pytest.mark.usefixtures("subreaper")


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
    end, _ = await work(tmp_path, socket, [["export"], FINISHED, ["sleep", 600]], {"exit_seconds": 0.5})

    assert (end.outcome, end.signal, end.num_killed) == (Outcome.FINISHED, "SIGKILL", 1)


async def test_a_trainer_that_closes_its_report_pipe_is_waited_for(tmp_path: Path, socket: Path) -> None:
    end, _ = await work(tmp_path, socket, [["export"], FINISHED, ["stop_reports"], ["sleep", 0.3]])

    assert (end.outcome, end.num_killed) == (Outcome.FINISHED, 0)


async def test_the_trainer_sees_the_verified_data(tmp_path: Path, socket: Path) -> None:
    _, server = await work(tmp_path, socket, [["resume_facts"], ["export"], FINISHED])

    text = [line.text for line in server.ledger.of(LogLine)]
    assert text[0] == "resumed from None"
    assert text[1] == f"data {DATA.decode().splitlines()[0]}"


@pytest.mark.parametrize("change", [{"dataset_digest": "sha256:" + "0" * 64}, {"dataset_key": "datasets/gone"}])
async def test_damaged_or_missing_data_fails_the_job(tmp_path: Path, socket: Path, change: dict[str, Any]) -> None:
    end, _ = await work(tmp_path, socket, [FINISHED], **change)

    assert (end.outcome, end.error) == (Outcome.FAILED, "InvalidDataset")
    assert "content" in end.message


async def test_a_trainer_that_cannot_be_started_has_died_of_that(tmp_path: Path, socket: Path) -> None:
    server = WorkerServer()
    made = await attempt(tmp_path, socket, [])
    async with serving(server, socket), working(made.agent(trainer_command=("/no/such/program",))) as task:
        await asyncio.wait_for(task, 60)

    assert server.ledger.end is not None
    assert server.ledger.end.outcome == Outcome.DIED
    assert "No such file" in server.ledger.end.last_lines[-1]


async def test_a_trainer_that_ends_before_it_is_written_down_has_died_of_what_it_died_of(
    tmp_path: Path, socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = World.start

    async def start_and_linger(*arguments: Any) -> World:
        world = await start(*arguments)
        await until(lambda: not psutil.pid_exists(world.pid))
        return world

    monkeypatch.setattr(World, "start", start_and_linger)

    end, _ = await work(tmp_path, socket, [["print", "evidence"], ["exit", 7]])

    assert (end.outcome, end.exit_code, end.last_lines) == (Outcome.DIED, 7, ("evidence",))


async def test_what_a_dying_trainer_has_saved_is_published_before_its_end_is_told(tmp_path: Path, socket: Path) -> None:
    end, server = await work(tmp_path, socket, [["checkpoint", 5, True], ["exit", 9]])

    assert (end.outcome, end.exit_code) == (Outcome.DIED, 9)
    assert [saved.step for saved in server.ledger.of(CheckpointSaved)] == [5]


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
        await asyncio.wait_for(task, 60)

    assert server.ledger.end is not None
    assert server.ledger.end.out_of_memory is grows


async def test_memory_is_not_blamed_for_a_training_that_went_well(tmp_path: Path, socket: Path) -> None:
    server = WorkerServer()
    made = await attempt(tmp_path, socket, [["export"], FINISHED])
    async with serving(server, socket), working(made.agent(counters=Counters(1))) as task:
        await asyncio.wait_for(task, 60)

    assert server.ledger.end == TrainerEnded(Outcome.FINISHED, exit_code=0)


async def test_a_flood_of_reports_arrives_whole(tmp_path: Path, socket: Path) -> None:
    line = json.dumps(step(1)[1]) + "\n"

    _, server = await work(tmp_path, socket, [["raw", line * 5000], ["export"], FINISHED])

    assert len(server.ledger.of(StepCompleted)) == 5000
