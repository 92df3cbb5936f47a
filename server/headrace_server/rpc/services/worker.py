"""headrace_server.worker.v1.WorkerService: the server's end of an agent's only connection.

Reports that are waiting when the last ones have become durable are kept together: the busier the agents, the fewer
transactions.
"""

import asyncio
from collections.abc import AsyncIterator

from headrace_server.errors import Draining, InvalidSpec, Violation, WorkerFenced
from headrace_server.rpc.interceptor import Context, Requests
from headrace_server.rpc.ports import WorkersPort
from headrace_server.rpc.wire.worker import command_to_proto, hello_from_proto, report_from_proto
from headrace_server.training.session import WorkerHello, WorkerReport, WorkerSession
from headrace_server.worker.v1 import worker_service_pb2 as pb, worker_service_pb2_grpc as pb_grpc

MOST_WAITING = 512
"""Reports that are read ahead of the database; then the agent is waited for no longer, but made to wait."""


class WorkerService(pb_grpc.WorkerServiceServicer):
    """Joins the agents of jobs to the training desk."""

    def __init__(self, desk: WorkersPort, closing: asyncio.Event) -> None:
        self._desk = desk
        self._closing = closing

    async def Attach(  # type: ignore[override]  # writes its answers itself
        self, requests: Requests[pb.AttachRequest], context: Context
    ) -> None:
        """Serve one connection until the agent closes it or a newer one takes its place."""
        first = await anext(requests, None)
        if first is None or first.WhichOneof("message") != "hello":
            raise InvalidSpec([Violation("hello", "must be the first message")])
        hello = hello_from_proto(first.hello)
        session = await self._desk.attach(hello)
        try:
            await context.write(pb.AttachResponse(welcome=pb.Welcome(acknowledged=session.acknowledged)))
            is_over = await _Connection(session, context).serve(requests)
        finally:
            session.close()
        if not is_over:
            raise await self._why_ended(hello)

    async def _why_ended(self, hello: WorkerHello) -> Draining | WorkerFenced:
        current = (await self._desk.get(hello.job)).attempt
        if self._closing.is_set() and current == hello.attempt:
            return Draining()
        return WorkerFenced(hello.attempt, current)


class _Connection:
    """One connection, which owns the tasks of its two directions."""

    def __init__(self, session: WorkerSession, context: Context) -> None:
        self._session = session
        self._context = context
        self._waiting: list[WorkerReport] = []
        self._bell = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._is_read = False
        self._turn = asyncio.Lock()  # acknowledgements and commands take turns

    async def serve(self, requests: AsyncIterator[pb.AttachRequest]) -> bool:
        """Serve until either side ends; whether the agent did.  Raises what the session raises."""
        reading = asyncio.ensure_future(self._read(requests))
        keeping = asyncio.ensure_future(self._keep())
        commanding = asyncio.ensure_future(self._command())
        tasks = (reading, keeping, commanding)
        try:
            # Reading alone is no reason to end: what was read must be kept first.
            await asyncio.wait((keeping, commanding), return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
            return keeping.done()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, requests: AsyncIterator[pb.AttachRequest]) -> None:
        try:
            async for request in requests:
                match request.WhichOneof("message"):
                    case "report":
                        await self._room.wait()
                        self._waiting.append(report_from_proto(request.report))
                        if len(self._waiting) >= MOST_WAITING:
                            self._room.clear()
                        self._bell.set()
                    case "beat":
                        self._session.beat(request.beat.trainer_pid)
                    case _:
                        raise InvalidSpec([Violation("message", "must be a report or a beat after hello")])
        finally:
            self._is_read = True
            self._bell.set()

    async def _keep(self) -> None:
        while True:
            await self._bell.wait()
            self._bell.clear()
            reports, self._waiting = self._waiting, []
            self._room.set()
            if reports:
                up_to = await self._session.receive(reports)
                await self._write(pb.AttachResponse(acknowledgement=pb.Acknowledgement(up_to=up_to)))
            if self._is_read and not self._waiting:
                return

    async def _command(self) -> None:
        async for command in self._session.commands():
            await self._write(command_to_proto(command))

    async def _write(self, response: pb.AttachResponse) -> None:
        async with self._turn:
            await self._context.write(response)
