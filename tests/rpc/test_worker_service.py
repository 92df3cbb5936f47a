import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.rpc import error_details_pb2

from headrace.training.v1 import training_event_pb2
from headrace_server.errors import JobNotFound, WorkerFenced
from headrace_server.names import JobName
from headrace_server.rpc.interceptor import Interceptor
from headrace_server.rpc.server import bind_socket, private_server
from headrace_server.rpc.services.worker import WorkerService
from headrace_server.telemetry.metrics import Metrics
from headrace_server.training.job import Job
from headrace_server.training.session import StopWorker, WorkerHello, WorkerReport, WorkerSession
from headrace_server.worker.v1 import worker_service_pb2 as pb
from headrace_server.worker.v1.worker_service_pb2_grpc import WorkerServiceStub
from tests.doubles.job_desk import a_job
from tests.doubles.until import until
from tests.rpc.test_predict import details_of

if TYPE_CHECKING:
    from headrace_server.worker.v1.worker_service_pb2_grpc import WorkerServiceAsyncStub

HELLO = pb.AttachRequest(hello=pb.Hello(job="trainingJobs/j1", attempt=1, token="t", pid=7, host="h"))


@dataclass
class Reception:
    """Lets agents in; keeps their reports when it may, and remembers how they were grouped."""

    job: Job = field(default_factory=lambda: a_job(attempt=1))
    sessions: list[WorkerSession] = field(default_factory=list)
    groups: list[list[int]] = field(default_factory=list)
    beats: list[int] = field(default_factory=list)
    num_gone: int = 0
    num_keeps: int = 0
    """Begun, whether or not they may."""
    may_keep: asyncio.Event = field(default_factory=asyncio.Event)

    async def get(self, name: JobName) -> Job:
        if str(name) != "trainingJobs/j1":
            raise JobNotFound(str(name))
        return self.job

    async def attach(self, hello: WorkerHello) -> WorkerSession:
        job = await self.get(hello.job)
        if hello.attempt != job.attempt:
            raise WorkerFenced(hello.attempt, job.attempt)
        session = WorkerSession(self, hello.attempt, acknowledged=5)
        self.sessions.append(session)
        return session

    async def keep(self, session: WorkerSession, reports: Sequence[WorkerReport]) -> int:
        self.num_keeps += 1
        await self.may_keep.wait()
        self.groups.append([report.number for report in reports])
        return reports[-1].number

    def note_life(self, session: WorkerSession, trainer_pid: int) -> None:
        self.beats.append(trainer_pid)

    def note_gone(self, session: WorkerSession) -> None:
        self.num_gone += 1


@dataclass
class Desk:
    reception: Reception
    closing: asyncio.Event
    stub: "WorkerServiceAsyncStub"


@asynccontextmanager
async def open_desk(folder: Path) -> AsyncIterator[Desk]:
    reception, closing = Reception(), asyncio.Event()
    server = private_server(Interceptor(Metrics(), closing), WorkerService(reception, closing))
    address = bind_socket(server, folder / "worker.sock")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            stub: WorkerServiceAsyncStub = WorkerServiceStub(channel)
            yield Desk(reception, closing, stub)
    finally:  # a server that a failed test leaves would trouble others
        await server.stop(0)


def report(number: int) -> pb.AttachRequest:
    message = pb.Report(number=number, phase_changed=training_event_pb2.PhaseChanged(phase="training"))
    message.time.FromDatetime(datetime(2026, 1, 1, tzinfo=UTC))
    return pb.AttachRequest(report=message)


async def test_reports_that_wait_are_kept_together_and_acknowledged(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        stream: Any = desk.stub.Attach()
        await stream.write(HELLO)
        welcome = await stream.read()
        await stream.write(report(6))
        await until(lambda: desk.reception.num_keeps == 1)
        for number in range(7, 50):
            await stream.write(report(number))
        await stream.write(pb.AttachRequest(beat=pb.Beat(trainer_pid=99)))
        await until(lambda: desk.reception.beats == [99])
        desk.reception.may_keep.set()
        first, second = await stream.read(), await stream.read()

        assert welcome.welcome.acknowledged == 5
        assert desk.reception.groups == [[6], list(range(7, 50))]
        assert [first.acknowledgement.up_to, second.acknowledgement.up_to] == [6, 49]


async def test_all_that_was_sent_is_kept_before_the_connection_ends_well(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        stream: Any = desk.stub.Attach()
        for message in (HELLO, report(6), report(7)):
            await stream.write(message)
        await stream.done_writing()
        desk.reception.may_keep.set()
        await _read_all(stream)

        assert [number for group in desk.reception.groups for number in group] == [6, 7]
        assert await stream.code() is grpc.StatusCode.OK
        assert desk.reception.num_gone == 1


async def test_commands_reach_the_agent_while_reports_are_being_kept(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        stream: Any = desk.stub.Attach()
        await stream.write(HELLO)
        await stream.read()
        await stream.write(report(6))
        desk.reception.sessions[0].stop(StopWorker(kill=False, grace_seconds=20))
        stop = (await stream.read()).stop

        assert (stop.mode, stop.grace_seconds) == (pb.Stop.MODE_GRACEFUL, 20)


async def test_a_fenced_agent_is_told_who_has_taken_over(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        stream: Any = desk.stub.Attach()
        await stream.write(HELLO)
        await stream.read()
        desk.reception.job = a_job(attempt=2)
        desk.reception.sessions[0].fence(2)

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
        assert caught.value.code() is grpc.StatusCode.ABORTED
        info = details_of(caught.value, error_details_pb2.ErrorInfo)
        assert isinstance(info, error_details_pb2.ErrorInfo)
        assert (info.reason, info.metadata["current"]) == ("WORKER_FENCED", "2")


async def test_an_agent_of_an_old_attempt_is_not_let_in(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        desk.reception.job = a_job(attempt=2)
        stream: Any = desk.stub.Attach()
        await stream.write(HELLO)

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
        assert caught.value.code() is grpc.StatusCode.ABORTED


async def test_an_agent_that_the_closing_server_lets_go_may_come_back(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        stream: Any = desk.stub.Attach()
        await stream.write(HELLO)
        await stream.read()
        desk.closing.set()
        desk.reception.sessions[0].close()

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_an_agent_that_dies_is_noticed(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        stream: Any = desk.stub.Attach()
        await stream.write(HELLO)
        await stream.read()

        stream.cancel()

        await until(lambda: desk.reception.num_gone == 1)


@pytest.mark.parametrize("messages", [[], [report(1)], [HELLO, HELLO]])
async def test_a_connection_begins_with_one_hello(tmp_path: Path, messages: list[pb.AttachRequest]) -> None:
    async with open_desk(tmp_path) as desk:
        stream: Any = desk.stub.Attach()
        for message in messages:
            await stream.write(message)
        await stream.done_writing()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _read_all(stream)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_reports_are_read_no_further_ahead_than_a_bound(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        stream: Any = desk.stub.Attach()
        await stream.write(HELLO)
        await stream.read()
        for number in range(6, 2006):
            await stream.write(report(number))
        desk.reception.may_keep.set()
        up_to = 0
        while up_to < 2005:
            up_to = (await stream.read()).acknowledgement.up_to

        numbers = [number for group in desk.reception.groups for number in group]
        assert numbers == list(range(6, 2006))
        assert max(map(len, desk.reception.groups)) <= 512


async def _read_all(stream: Any) -> None:
    while await stream.read() is not grpc.aio.EOF:
        pass
