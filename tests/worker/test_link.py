"""The agent's line brings every report to the server exactly once, whatever happens to either."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from headrace_server.names import JobName
from headrace_server.trainers.reports import PhaseChanged
from headrace_server.training.session import ProfileWorker, StopWorker, WorkerHello
from headrace_server.worker.link import Dismissed, Link, Patience
from headrace_server.worker.outbox import Outbox
from headrace_server.worker.spool import Spool
from tests.doubles.until import until
from tests.doubles.worker_server import Ledger, WorkerServer, serving

HELLO = WorkerHello(job=JobName("j"), attempt=2, token="secret", pid=7, host="here")


@pytest.fixture
async def outbox(tmp_path: Path) -> AsyncIterator[Outbox]:
    outbox = Outbox(Spool(tmp_path / "spool"))
    await outbox.open()
    yield outbox
    await outbox.close()


class Dialled:
    """A running link and what came down it."""

    def __init__(
        self, socket: Path, outbox: Outbox, heartbeat_seconds: float, detached_seconds: float, patience: Patience
    ) -> None:
        self.stops: list[StopWorker] = []
        self.profiles: list[ProfileWorker] = []
        self.link = Link(
            f"unix:{socket}",
            HELLO,
            outbox,
            heartbeat_seconds=heartbeat_seconds,
            detached_seconds=detached_seconds,
            on_stop=self.stops.append,
            on_profile=self.profiles.append,
            trainer_pid=lambda: 4711,
            patience=patience,
        )
        self.task: asyncio.Task[None] | None = None


# Quick to dial again, and as patient as an agent is: a busy machine must not add connections.
PATIENT = Patience(first_redial_seconds=0.01, longest_redial_seconds=0.05)
HASTY = replace(PATIENT, welcome_seconds=0.3, acknowledgement_seconds=0.3)


@asynccontextmanager
async def dialled(
    socket: Path,
    outbox: Outbox,
    heartbeat_seconds: float = 0.05,
    detached_seconds: float = 60,
    patience: Patience = PATIENT,
) -> AsyncIterator[Dialled]:
    link = Dialled(socket, outbox, heartbeat_seconds, detached_seconds, patience)
    link.task = asyncio.create_task(link.link.run())
    try:
        yield link
    finally:
        link.task.cancel()
        await asyncio.wait([link.task])


def phases(num: int) -> list[PhaseChanged]:
    return [PhaseChanged(phase=f"phase {number}") for number in range(1, num + 1)]


async def test_reports_go_up_and_are_acknowledged(socket: Path, outbox: Outbox) -> None:
    server = WorkerServer()
    await outbox.add(phases(3))

    async with serving(server, socket), dialled(socket, outbox):
        await asyncio.wait_for(outbox.wait_until_acknowledged(), 60)
        await outbox.add([PhaseChanged(phase="later")])
        await asyncio.wait_for(outbox.wait_until_acknowledged(), 60)

    assert server.hellos == [HELLO]
    assert server.ledger.contents == [*phases(3), PhaseChanged(phase="later")]
    assert server.ledger.num_received == 4


async def test_heartbeats_name_the_trainer(socket: Path, outbox: Outbox) -> None:
    server = WorkerServer()

    async with serving(server, socket), dialled(socket, outbox):
        await server.until(lambda server: len(server.beats) >= 5)

    assert set(server.beats) == {4711}


@pytest.mark.parametrize("acknowledges", [True, False], ids=["acknowledged", "acknowledgement lost"])
async def test_a_connection_lost_at_any_report_loses_none(socket: Path, outbox: Outbox, acknowledges: bool) -> None:
    server = WorkerServer()
    server.acknowledges = acknowledges
    hung_up_at: set[int] = set()

    def hang_up(report: object) -> bool:
        number = getattr(report, "number", 0)
        is_new = number not in hung_up_at
        hung_up_at.add(number)
        return is_new

    server.hang_up_after = hang_up
    await outbox.add(phases(20))

    async with serving(server, socket), dialled(socket, outbox):
        await asyncio.wait_for(outbox.wait_until_acknowledged(), 60)

    assert server.ledger.contents == phases(20)
    assert len(server.hellos) == 21


async def test_a_server_that_is_killed_and_started_again_misses_nothing(socket: Path, outbox: Outbox) -> None:
    ledger = Ledger()
    async with dialled(socket, outbox) as link:
        for number in range(10):
            server = WorkerServer(ledger)
            async with serving(server, socket):
                await server.until(lambda server: bool(server.hellos))
                await outbox.add([PhaseChanged(phase=f"{number} up")])
                await server.until(lambda server, number=number: len(server.ledger.reports) > 2 * number)  # type: ignore[misc]
            await outbox.add([PhaseChanged(phase=f"{number} down")])
        server = WorkerServer(ledger)
        async with serving(server, socket):
            await asyncio.wait_for(outbox.wait_until_acknowledged(), 60)
        assert not link.link.detached.is_set()

    assert len(ledger.contents) == 20


async def test_a_server_that_is_away_is_looked_for_about_once_a_second(socket: Path, outbox: Outbox) -> None:
    server = WorkerServer()
    num_dials = 0

    def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal num_dials
        num_dials += 1
        writer.close()

    async with dialled(socket, outbox, patience=Patience()):
        async with await asyncio.start_unix_server(hang_up, socket):
            # Some seconds.  If the waits doubled without end, or were gRPC's own, it would be some minutes.
            await until(lambda: num_dials >= 12, 60)
        socket.unlink(missing_ok=True)  # noqa: ASYNC240
        async with serving(server, socket):
            await server.until(lambda server: bool(server.hellos))


async def test_orders_come_down(socket: Path, outbox: Outbox) -> None:
    server = WorkerServer()

    async with serving(server, socket), dialled(socket, outbox) as link:
        server.stop_worker(kill=False, grace_seconds=7.5)
        server.stop_worker(kill=True, grace_seconds=0)
        await server.until(lambda _: len(link.stops) == 2)

    assert link.stops == [StopWorker(kill=False, grace_seconds=7.5), StopWorker(kill=True, grace_seconds=0)]


@pytest.mark.parametrize("code", [grpc.StatusCode.ABORTED, grpc.StatusCode.NOT_FOUND])
@pytest.mark.parametrize("when", ["at hello", "later"])
async def test_an_attempt_that_was_replaced_is_dismissed(
    socket: Path, outbox: Outbox, code: grpc.StatusCode, when: str
) -> None:
    server = WorkerServer()
    if when == "at hello":
        server.abort_with = (code, "no")

    async with serving(server, socket), dialled(socket, outbox) as link:
        assert link.task is not None
        if when == "later":
            await server.until(lambda server: bool(server.beats))
            await server.abort(code, "no")
        with pytest.raises(Dismissed):
            await asyncio.wait_for(link.task, 60)


@pytest.mark.parametrize(("current", "is_dismissed"), [(3, True), (2, False)])
async def test_a_connection_replaced_by_the_same_attempts_next_one_is_no_dismissal(
    socket: Path, outbox: Outbox, current: int, is_dismissed: bool
) -> None:
    server = WorkerServer()
    info = error_details_pb2.ErrorInfo(reason="WORKER_FENCED", metadata={"attempt": "2", "current": str(current)})
    status = status_pb2.Status(code=grpc.StatusCode.ABORTED.value[0], message="fenced")
    status.details.add().Pack(info)
    server.abort_details = status.SerializeToString()
    server.abort_with = (grpc.StatusCode.ABORTED, "fenced")

    async with serving(server, socket), dialled(socket, outbox) as link:
        assert link.task is not None
        await server.until(lambda server: len(server.hellos) >= (1 if is_dismissed else 3))
        done, _ = await asyncio.wait([link.task], timeout=60 if is_dismissed else 0)

    assert bool(done) is is_dismissed


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN])
async def test_any_other_failure_is_tried_again(socket: Path, outbox: Outbox, code: grpc.StatusCode) -> None:
    server = WorkerServer()
    server.abort_with = (code, "not now")
    await outbox.add(phases(1))

    async with serving(server, socket), dialled(socket, outbox):
        await server.until(lambda server: len(server.hellos) >= 3)
        server.abort_with = None
        await asyncio.wait_for(outbox.wait_until_acknowledged(), 60)


async def test_a_server_that_does_not_answer_hello_is_dialled_again(socket: Path, outbox: Outbox) -> None:
    server = WorkerServer()
    server.welcomes = False

    async with serving(server, socket), dialled(socket, outbox, patience=HASTY):
        await server.until(lambda server: len(server.hellos) >= 2)


async def test_a_server_that_acknowledges_nothing_is_dialled_again(socket: Path, outbox: Outbox) -> None:
    server = WorkerServer()
    server.acknowledges = False
    await outbox.add(phases(2))

    async with serving(server, socket), dialled(socket, outbox, patience=HASTY):
        await server.until(lambda server: len(server.hellos) >= 2)
        await asyncio.wait_for(outbox.wait_until_acknowledged(), 60)  # the welcome says what it keeps

    assert server.ledger.contents == phases(2)


async def test_without_a_server_for_long_the_link_says_so_and_dials_on(socket: Path, outbox: Outbox) -> None:
    server = WorkerServer()
    async with dialled(socket, outbox, detached_seconds=0.2) as link:
        await asyncio.wait_for(link.link.detached.wait(), 60)
        async with serving(server, socket):
            await server.until(lambda server: bool(server.hellos))


async def test_time_with_a_server_is_not_counted_as_time_alone(
    socket: Path, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, loop = WorkerServer(), asyncio.get_running_loop()
    timers: list[asyncio.TimerHandle] = []
    call_later = loop.call_later

    def noting(delay: float, *call: Any, **context: Any) -> asyncio.TimerHandle:
        timer = call_later(delay, *call, **context)
        timers.extend([timer] if delay == 4321 else [])
        return timer

    monkeypatch.setattr(loop, "call_later", noting)
    async with serving(server, socket), dialled(socket, outbox, detached_seconds=4321):
        await server.until(lambda server: bool(server.beats))

        assert [timer.cancelled() for timer in timers] == [True]


class _DyingCall:
    """A call that breaks in the very moment in which the link is cancelled."""

    def __init__(self) -> None:
        self.owner: asyncio.Task[Any] | None = None

    async def read(self) -> None:
        await asyncio.Event().wait()

    async def write(self, request: object) -> None:
        assert self.owner is not None
        self.owner.cancel()
        raise asyncio.InvalidStateError("RPC already finished.")


async def test_a_cancellation_is_not_lost_where_it_meets_a_broken_connection(socket: Path, outbox: Outbox) -> None:
    async with dialled(socket, outbox) as link:
        call: Any = _DyingCall()
        call.owner = asyncio.ensure_future(link.link._talk(call))

        with pytest.raises(asyncio.CancelledError):
            await call.owner


async def test_a_cancellation_that_the_connection_has_swallowed_ends_the_link(
    socket: Path, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with dialled(socket, outbox) as link:

        async def swallow(alone: object) -> str:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                return "UNAVAILABLE: Cancelling all calls"
            raise AssertionError

        monkeypatch.setattr(link.link, "_attach", swallow)
        running = asyncio.ensure_future(link.link.run())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        running.cancel()

        done, _ = await asyncio.wait((running,), timeout=60)
        assert done
        assert running.cancelled()
