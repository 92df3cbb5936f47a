"""The real server as a process of its own, as people start it; tests talk to it only as people can."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import grpc
import psutil

from headrace.datasets.v1.dataset_service_pb2_grpc import DatasetServiceStub
from headrace.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from headrace.models.v1.model_service_pb2_grpc import ModelServiceStub
from headrace.training.v1.training_service_pb2_grpc import TrainingServiceStub

if TYPE_CHECKING:
    from headrace.datasets.v1.dataset_service_pb2_grpc import DatasetServiceAsyncStub
    from headrace.inference.v1.inference_service_pb2_grpc import InferenceServiceAsyncStub
    from headrace.models.v1.model_service_pb2_grpc import ModelServiceAsyncStub
    from headrace.training.v1.training_service_pb2_grpc import TrainingServiceAsyncStub


LEASE_SECONDS = 60
"""How long a worker may be silent: on a busy machine none may be given up while it is there."""


class Callers:
    """A channel, and a stub for each service."""

    def __init__(self, target: str) -> None:
        limit = 64 << 20
        self.channel = grpc.aio.insecure_channel(
            target,
            options=[
                ("grpc.max_receive_message_length", limit),
                ("grpc.max_send_message_length", limit),
                ("grpc.use_local_subchannel_pool", 1),
            ],
        )
        self.training: TrainingServiceAsyncStub = TrainingServiceStub(self.channel)
        self.inference: InferenceServiceAsyncStub = InferenceServiceStub(self.channel)
        self.models: ModelServiceAsyncStub = ModelServiceStub(self.channel)
        self.datasets: DatasetServiceAsyncStub = DatasetServiceStub(self.channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()


class ServerProcess:
    """One process of `headrace-server serve`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[dict[str, Any]] = []
        """Its log so far."""
        self.text: list[str] = []
        """What it wrote that is not JSON."""
        self._read = asyncio.Condition()
        self._reading = asyncio.ensure_future(self._read_log())

    @classmethod
    async def start(
        cls,
        data: Path,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        program: Sequence[str] = ("headrace_server",),
    ) -> "ServerProcess":
        """Start a server on free ports, without waiting for anything; `program` is a module and its first arguments."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            *program,
            "serve",
            "--data",
            str(data),
            *("--port", "0", "--set", "telemetry.metrics_port=0"),
            *("--set", f"training.lease_seconds={LEASE_SECONDS}"),
            *arguments,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **(environment or {})},
            limit=1 << 22,
        )
        return cls(process)

    @property
    def pid(self) -> int:
        """Its process."""
        return self.process.pid

    async def logged(self, event: str, seconds: float = 100) -> dict[str, Any]:
        """Wait for a line of the log.  Raises AssertionError with the whole log when the server ends before."""
        async with asyncio.timeout(seconds), self._read:
            while True:
                for line in self.lines:
                    if line["event"] == event:
                        return line
                assert not self._reading.done(), self.report()
                await self._read.wait()

    async def opened(self) -> Callers:
        """Wait until it is open; a channel to it."""
        line = await self.logged("house.open")
        return Callers(f"127.0.0.1:{line['port']}")

    async def ended(self, seconds: float = 100) -> int:
        """Wait for its end; its exit code."""
        async with asyncio.timeout(seconds):
            await self._reading
            return await self.process.wait()

    async def kill(self) -> None:
        """End it as a power cut would."""
        if self.process.returncode is None:
            self.process.kill()
        await self.ended()

    def agents(self) -> list[psutil.Process]:
        """The agents of jobs that it has started and that still run."""
        return [agent for agent in self._all_agents() if not _is_waiting(agent)]

    def waiting_agents(self) -> list[psutil.Process]:
        """Those that it keeps ready for the next job."""
        return [agent for agent in self._all_agents() if _is_waiting(agent)]

    def processes_of_jobs(self) -> list[psutil.Process]:
        """The agents of jobs, and all below them."""
        found = []
        for agent in self.agents():
            with suppress(psutil.Error):  # it has ended meanwhile
                found += [agent, *agent.children(recursive=True)]
        return found

    def _all_agents(self) -> list[psutil.Process]:
        return [child for child in psutil.Process(self.pid).children() if _is_agent(child)]

    def report(self) -> str:
        """All that it said."""
        return "\n".join([*self.text, *(json.dumps(line) for line in self.lines)])

    async def _read_log(self) -> None:
        assert self.process.stderr is not None
        async for raw in self.process.stderr:
            line = raw.decode(errors="replace").rstrip()
            async with self._read:
                try:
                    self.lines.append(json.loads(line))
                except ValueError:
                    self.text.append(line)
                self._read.notify_all()
        async with self._read:
            self._read.notify_all()


def _is_agent(process: psutil.Process) -> bool:
    try:
        return "headrace_server.worker" in " ".join(process.cmdline())
    except psutil.Error:  # it has ended meanwhile
        return False


def _is_waiting(agent: psutil.Process) -> bool:
    try:
        return "/.warm/" in agent.cwd()
    except psutil.Error:
        return False


@asynccontextmanager
async def running(
    data: Path,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    program: Sequence[str] = ("headrace_server",),
) -> AsyncIterator[tuple[ServerProcess, Callers]]:
    """An open server and its callers; killed at the end of the block, with whatever it started."""
    server = await ServerProcess.start(data, *arguments, environment=environment, program=program)
    try:
        async with await server.opened() as callers:
            yield server, callers
    finally:
        await server.kill()


def end_processes_of(data: Path) -> int:
    """Kill every process that names a file below this folder; returns how many there were."""
    num_killed = 0
    for process in psutil.process_iter():
        try:
            if any(str(data) in argument for argument in process.cmdline()) and process.pid != os.getpid():
                process.kill()
                num_killed += 1
        except psutil.Error:
            continue
    return num_killed
