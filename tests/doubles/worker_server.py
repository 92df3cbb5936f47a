"""The server's end of an agent's line, with a script: keeps reports, loses acknowledgements, hangs up, fences."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from headrace_server.rpc.wire.worker import hello_from_proto, report_from_proto, stop_to_proto
from headrace_server.training.session import ReportContent, StopWorker, TrainerEnded, WorkerHello, WorkerReport
from headrace_server.worker.v1 import worker_service_pb2 as pb
from headrace_server.worker.v1.worker_service_pb2_grpc import (
    WorkerServiceServicer,
    add_WorkerServiceServicer_to_server,
)

_Context = grpc.aio.ServicerContext[pb.AttachRequest, pb.AttachResponse]


@dataclass
class Ledger:
    """What outlives a restart of the server: the reports that it keeps, each once."""

    reports: list[WorkerReport] = field(default_factory=list)
    num_received: int = 0
    """Counting repeated ones."""

    @property
    def contents(self) -> list[ReportContent]:
        return [report.content for report in self.reports]

    @property
    def end(self) -> TrainerEnded | None:
        last = self.contents[-1] if self.reports else None
        return last if isinstance(last, TrainerEnded) else None

    def keep(self, report: WorkerReport) -> None:
        self.num_received += 1
        if report.number <= len(self.reports):
            assert report == self.reports[report.number - 1], "a repeated report is the same report"
            return
        assert report.number == len(self.reports) + 1, f"report {report.number} came after {len(self.reports)}"
        self.reports.append(report)

    def of(self, kind: type[Any]) -> list[Any]:
        return [content for content in self.contents if isinstance(content, kind)]


class WorkerServer(WorkerServiceServicer):
    """One server.  Change its attributes to change what it does."""

    def __init__(self, ledger: Ledger | None = None) -> None:
        self.ledger = ledger or Ledger()
        self.hellos: list[WorkerHello] = []
        self.beats: list[int] = []
        self.acknowledges = True
        self.welcomes = True
        self.abort_with: tuple[grpc.StatusCode, str] | None = None
        """Given to every connection, now and later."""
        self.abort_details = b""
        """A google.rpc.Status that goes with it."""
        self.hang_up_after: Callable[[WorkerReport], bool] = lambda report: False
        """Asked after a report was kept and before it is acknowledged; True ends the connection."""
        self._changed = asyncio.Condition()
        self._orders: asyncio.Queue[StopWorker] = asyncio.Queue()

    def stop_worker(self, kill: bool, grace_seconds: float = 5) -> None:
        self._orders.put_nowait(StopWorker(kill, grace_seconds))

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        self.abort_with = (code, details)
        await self._tell()

    async def until(self, is_so: Callable[["WorkerServer"], bool], seconds: float = 60) -> None:
        """Wait for a fact about what came in."""
        async with asyncio.timeout(seconds), self._changed:
            await self._changed.wait_for(lambda: is_so(self))

    async def ended(self, seconds: float = 60) -> TrainerEnded:
        """Wait for the last report."""
        await self.until(lambda server: server.ledger.end is not None, seconds)
        assert self.ledger.end is not None
        return self.ledger.end

    async def Attach(
        self, request_iterator: AsyncIterator[pb.AttachRequest], context: _Context
    ) -> AsyncIterator[pb.AttachResponse]:
        hello = await anext(aiter(request_iterator))
        self.hellos.append(hello_from_proto(hello.hello))
        await self._tell()
        if not self.welcomes:
            await asyncio.sleep(3600)
        await self._abort_if_told(context)
        yield pb.AttachResponse(welcome=pb.Welcome(acknowledged=len(self.ledger.reports)))
        answers: asyncio.Queue[pb.AttachResponse | None] = asyncio.Queue()
        async with asyncio.TaskGroup() as tasks:
            workers = [
                tasks.create_task(self._listen(request_iterator, answers)),
                tasks.create_task(self._order(answers)),
                tasks.create_task(self._watch_abort(answers)),
            ]
            while (answer := await answers.get()) is not None:
                yield answer
            for worker in workers:
                worker.cancel()
        await self._abort_if_told(context)

    async def _listen(
        self, requests: AsyncIterator[pb.AttachRequest], answers: asyncio.Queue[pb.AttachResponse | None]
    ) -> None:
        async for request in requests:
            match request.WhichOneof("message"):
                case "beat":
                    self.beats.append(request.beat.trainer_pid)
                case "report":
                    report = report_from_proto(request.report)
                    self.ledger.keep(report)
                    if self.hang_up_after(report):
                        break
                    if self.acknowledges:
                        up_to = len(self.ledger.reports)
                        answers.put_nowait(pb.AttachResponse(acknowledgement=pb.Acknowledgement(up_to=up_to)))
            await self._tell()
        answers.put_nowait(None)

    async def _order(self, answers: asyncio.Queue[pb.AttachResponse | None]) -> None:
        while True:
            order = await self._orders.get()
            answers.put_nowait(pb.AttachResponse(stop=stop_to_proto(order)))

    async def _watch_abort(self, answers: asyncio.Queue[pb.AttachResponse | None]) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self.abort_with is not None)
        answers.put_nowait(None)

    async def _abort_if_told(self, context: _Context) -> None:
        if self.abort_with is not None:
            details = (("grpc-status-details-bin", self.abort_details),) if self.abort_details else ()
            await context.abort(*self.abort_with, trailing_metadata=details)

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()


@asynccontextmanager
async def serving(server: WorkerServer, socket: Path) -> AsyncIterator[str]:
    """Serve on a Unix socket; yields the address.  Leaving ends every connection at once, as a crash would."""
    grpc_server = grpc.aio.server()
    add_WorkerServiceServicer_to_server(server, grpc_server)
    address = f"unix:{socket}"
    grpc_server.add_insecure_port(address)
    await grpc_server.start()
    try:
        yield address
    finally:
        await grpc_server.stop(None)
