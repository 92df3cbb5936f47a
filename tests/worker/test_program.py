"""The agent as the program that launchers start, with real processes around it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from headrace_server.launchers.process import AGENT_LOG_FILE, TRAINER_PID_FILE, ProcessLauncher
from headrace_server.launchers.processes import AGENT_PID_FILE
from headrace_server.storage.local import LocalBlobStore
from headrace_server.trainers.recipe import Epochs, Recipe
from headrace_server.trainers.reports import PhaseChanged, StepCompleted
from headrace_server.training.assignment import PublishedExport
from headrace_server.training.events import CheckpointSaved
from headrace_server.training.session import Exported, Outcome
from tests.doubles.agent_at_work import STOPPED, TRAINING, children_of, has_child, is_training, runs
from tests.doubles.attempts import TRAINER, Attempt
from tests.doubles.until import until
from tests.doubles.worker_server import Ledger, WorkerServer, serving

ROWS = "\n".join(["a,b,label", *(f"{n % 7},{n % 5},{'yes' if n % 2 else 'no'}" for n in range(400))]).encode()


@pytest.fixture
def launcher(tmp_path: Path) -> ProcessLauncher:
    """Starts the real agent program, which starts a trainer that follows a script."""
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        "from headrace_server.worker.__main__ import main\n"
        "from headrace_server.worker.agent import Ways\n"
        f"ways = Ways(trainer_command=(sys.executable, '-S', {str(TRAINER)!r}), leave_grace_seconds=5)\n"
        "sys.exit(main(sys.argv[1:], ways))\n"
    )
    return ProcessLauncher((sys.executable, str(program)))


def recorded(folder: Path, name: str) -> int:
    return int(json.loads((folder / name).read_text())["pid"])


async def launched(tmp_path: Path, socket: Path, launcher: ProcessLauncher, script: Sequence[Any]) -> Attempt:
    attempt = Attempt(tmp_path, socket, script)
    await attempt.prepare()
    await launcher.launch(attempt.assignment.job, 1, attempt.folder)
    return attempt


async def test_an_agent_does_its_work_and_goes(tmp_path: Path, socket: Path, launcher: ProcessLauncher) -> None:
    server = WorkerServer()
    async with serving(server, socket):
        attempt = await launched(tmp_path, socket, launcher, [TRAINING, ["export"], ["report", {"kind": "finished"}]])

        end = await server.ended(60)
        agent = recorded(attempt.folder, AGENT_PID_FILE)
        await until(lambda: not psutil.pid_exists(agent))

    assert (end.outcome, end.exit_code) == (Outcome.FINISHED, 0)
    assert server.hellos[0].pid == agent
    left = {path.name for path in attempt.folder.rglob("*") if path.is_file()}
    assert left <= {"assignment.json", AGENT_LOG_FILE, AGENT_PID_FILE, TRAINER_PID_FILE}


async def test_an_agent_whose_own_log_cannot_be_written_does_its_work(
    tmp_path: Path, socket: Path, launcher: ProcessLauncher
) -> None:
    server = WorkerServer()
    async with serving(server, socket):
        folder = tmp_path / "attempt"
        folder.mkdir()
        (folder / AGENT_LOG_FILE).symlink_to("/dev/full")
        await launched(tmp_path, socket, launcher, [TRAINING, ["export"], ["report", {"kind": "finished"}]])

        assert (await server.ended(60)).outcome is Outcome.FINISHED


async def test_the_trainer_of_a_killed_agent_dies_with_it(
    tmp_path: Path, socket: Path, launcher: ProcessLauncher
) -> None:
    server = WorkerServer()
    async with serving(server, socket):
        attempt = await launched(tmp_path, socket, launcher, [["spawn", "session"], TRAINING, ["ignore_stop"]])
        await server.until(has_child, 60)
        trainer = server.beats[-1]
        (child,) = children_of(server)
        assert runs(trainer)
        assert runs(child)

        os.kill(recorded(attempt.folder, AGENT_PID_FILE), signal.SIGKILL)

        await until(lambda: not runs(trainer))
        assert runs(child), "its children are for the launcher to find"
        assert await ProcessLauncher().kill("trainingJobs/j", 1, attempt.folder, trainer) == 1
        assert not runs(child)


async def test_the_launcher_kills_an_agent_at_work_with_everything_below(
    tmp_path: Path, socket: Path, launcher: ProcessLauncher
) -> None:
    server = WorkerServer()
    async with serving(server, socket):
        attempt = await launched(tmp_path, socket, launcher, [["spawn", "hidden"], TRAINING, ["ignore_stop"]])
        await server.until(has_child, 60)
        pids = [server.beats[-1], *children_of(server)]

        num_killed = await launcher.kill("trainingJobs/j", 1, attempt.folder, server.beats[-1])

    assert num_killed == 3
    assert not any(runs(pid) for pid in pids)


async def test_a_terminated_agent_leaves_with_a_checkpoint(
    tmp_path: Path, socket: Path, launcher: ProcessLauncher
) -> None:
    server = WorkerServer()
    async with serving(server, socket):
        script = [TRAINING, ["wait_stop"], ["checkpoint", 4, True], STOPPED]
        attempt = await launched(tmp_path, socket, launcher, script)
        await server.until(is_training, 60)

        os.kill(recorded(attempt.folder, AGENT_PID_FILE), signal.SIGTERM)
        end = await server.ended(60)

    assert end.outcome == Outcome.STOPPED
    assert [saved.step for saved in server.ledger.of(CheckpointSaved)] == [4]


@pytest.mark.parametrize("content", [None, "{}", "no json"])
def test_without_an_assignment_it_says_so(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "assignment.json").write_text(content)

    done = subprocess.run(
        [sys.executable, "-m", "headrace_server.worker", str(tmp_path)], capture_output=True, text=True, check=False
    )

    assert done.returncode == 2
    assert "assignment.json" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_agent_knows_no_torch_and_no_database() -> None:
    script = (
        "import sys, headrace_server.worker.__main__\n"
        "print([name for name in ('torch', 'sqlalchemy', 'onnxruntime') if name in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


class Real:
    """An attempt with the real trainer on a small table."""

    def __init__(self, tmp_path: Path, socket: Path, epochs: int, **changes: Any) -> None:
        self.tmp_path = tmp_path
        self.attempt = Attempt(
            tmp_path,
            socket,
            **{
                "parameters": {"target": "label", "hidden_widths": [8]},
                "recipe": Recipe(seed=1, length=Epochs(count=epochs), cpu_threads=1),
                "dataset_digest": "",
                **changes,
            },
        )

    async def launch(self, launcher: ProcessLauncher) -> None:
        store = LocalBlobStore(self.tmp_path / "store")
        await store.open()
        blob = await store.put_bytes("datasets/d", ROWS)
        assignment = self.attempt.assignment.model_copy(update={"dataset_digest": blob.digest})
        (self.attempt.folder / "assignment.json").write_text(assignment.model_dump_json())
        await launcher.launch(assignment.job, assignment.attempt, self.attempt.folder)


@pytest.mark.slow
async def test_the_real_trainer_trains_checkpoints_and_exports(tmp_path: Path, socket: Path) -> None:
    server = WorkerServer()
    launcher = ProcessLauncher()
    real = Real(tmp_path, socket, epochs=3)
    async with serving(server, socket):
        await real.launch(launcher)
        end = await server.ended(90)

    assert (end.outcome, end.exit_code, end.num_killed) == (Outcome.FINISHED, 0, 0), end
    assert server.ledger.of(StepCompleted)
    assert any(saved.is_best for saved in server.ledger.of(CheckpointSaved))
    (exported,) = server.ledger.of(Exported)
    published = PublishedExport.model_validate_json(await real.attempt.store.get_bytes(exported.manifest_key))
    assert {artifact.path for artifact in published.artifacts} >= {"model.onnx"}
    phases = [phase.phase for phase in server.ledger.of(PhaseChanged)]
    assert phases[:2] == ["starting", "fetching_data"]
    assert phases[-1] == "publishing"


@pytest.mark.slow
async def test_the_real_trainer_continues_after_its_agent_was_killed(tmp_path: Path, socket: Path) -> None:
    # Given an agent that is killed in the middle of a long training.
    first = WorkerServer()
    launcher = ProcessLauncher()
    real = Real(tmp_path / "1", socket, epochs=100_000)
    async with serving(first, socket):
        await real.launch(launcher)
        await first.until(lambda server: len(server.ledger.of(CheckpointSaved)) >= 2, 90)
        trainer = first.beats[-1]
        os.kill(recorded(real.attempt.folder, AGENT_PID_FILE), signal.SIGKILL)
        await until(lambda: not runs(trainer))
        await launcher.kill("trainingJobs/j", 1, real.attempt.folder, trainer)
    saved = first.ledger.of(CheckpointSaved)[-1]

    # When another attempt continues, and is told to stop.
    second = WorkerServer(Ledger())
    (tmp_path / "1" / "attempt").rename(tmp_path / "1" / "old")
    again = Real(tmp_path / "1", socket, epochs=100_000, attempt=2, resume_from=saved.uri)
    async with serving(second, socket):
        await again.launch(launcher)
        await second.until(lambda server: bool(server.ledger.of(StepCompleted)), 90)
        second.stop_worker(kill=False, grace_seconds=30)
        end = await second.ended(60)

    assert end.outcome == Outcome.STOPPED, end
    assert second.ledger.of(StepCompleted)[0].step > saved.step
    assert second.ledger.of(CheckpointSaved)[-1].step >= second.ledger.of(StepCompleted)[-1].step


async def test_two_attempts_in_a_row_do_not_find_each_others_processes(
    tmp_path: Path, socket: Path, launcher: ProcessLauncher
) -> None:
    server = WorkerServer()
    async with serving(server, socket):
        attempt = await launched(tmp_path, socket, launcher, [TRAINING, ["ignore_stop"]])
        await server.until(is_training, 60)
        other = tmp_path / "other"
        other.mkdir()

        assert await launcher.kill("trainingJobs/j", 2, other, 0) == 0
        assert runs(server.beats[-1])
        assert await launcher.kill("trainingJobs/j", 1, attempt.folder, server.beats[-1]) == 2
