"""An agent at work on an attempt that follows a script, and what can be seen of it."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil

from headrace_server.launchers.processes import is_alive
from headrace_server.trainers.reports import PhaseChanged
from headrace_server.training.events import LogLine
from headrace_server.training.session import TrainerEnded
from headrace_server.worker.agent import Agent
from tests.doubles.attempts import Attempt
from tests.doubles.worker_server import WorkerServer, serving

FINISHED = ["report", {"kind": "finished"}]
STOPPED = ["report", {"kind": "stopped"}]
FAILED = ["report", {"kind": "failed", "error": "InvalidDataset", "message": "no such column"}]
TRAINING = ["report", {"kind": "phase_changed", "phase": "training"}]


def step(number: int) -> list[Any]:
    figures = {"epoch": 1, "fraction": 0.5, "loss": 1.5, "learning_rate": 0.1, "samples_per_second": 9}
    return ["report", {"kind": "step_completed", "step": number, **figures}]


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
    tmp_path: Path, socket: Path, script: Sequence[Any], ways: Mapping[str, Any] | None = None, **changes: Any
) -> tuple[TrainerEnded, WorkerServer]:
    """Let an agent make an attempt with a server that only keeps; `changes` are those of the assignment."""
    server = WorkerServer()
    made = await attempt(tmp_path, socket, script, **changes)
    async with serving(server, socket), working(made.agent(**(ways or {}))) as task:
        assert await asyncio.wait_for(task, 60)
        return await server.ended(), server


def children_of(server: WorkerServer) -> list[int]:
    lines = [line.text for line in server.ledger.of(LogLine)]
    return [int(line.removeprefix("child ")) for line in lines if line.startswith("child ")]


def is_training(server: WorkerServer) -> bool:
    return PhaseChanged(phase="training") in server.ledger.contents and server.beats[-1] > 0


def has_child(server: WorkerServer) -> bool:
    """Whether it trains and has told of a child; the two come through different pipes, in any order."""
    return is_training(server) and bool(children_of(server))


def runs(pid: int) -> bool:
    try:
        return is_alive(psutil.Process(pid))
    except psutil.NoSuchProcess:
        return False
