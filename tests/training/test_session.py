import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest

from headrace_server.errors import WorkerFenced
from headrace_server.training.session import LARGEST_COMMIT, Command, StopWorker, WorkerReport, WorkerSession
from tests.doubles.scripted_workers import a_step

GRACEFUL = StopWorker(kill=False, grace_seconds=5)
KILL = StopWorker(kill=True, grace_seconds=0)


class Ledger:
    """A ReportSink that writes down what it is told."""

    def __init__(self) -> None:
        self.kept: list[int] = []
        self.batches: list[int] = []
        self.beats: list[int] = []
        self.num_gone = 0

    async def keep(self, session: WorkerSession, reports: Sequence[WorkerReport]) -> int:
        """Keep all."""
        self.batches.append(len(reports))
        self.kept += [report.number for report in reports]
        return self.kept[-1]

    def note_life(self, session: WorkerSession, trainer_pid: int) -> None:
        """Write down."""
        self.beats.append(trainer_pid)

    def note_gone(self, session: WorkerSession) -> None:
        """Write down."""
        self.num_gone += 1


def reports(count: int) -> list[WorkerReport]:
    return [WorkerReport(number, datetime.now(UTC), a_step(number)) for number in range(1, count + 1)]


async def test_many_reports_are_kept_in_several_transactions() -> None:
    ledger = Ledger()
    session = WorkerSession(ledger, 1, 0)

    acknowledged = await session.receive(reports(2 * LARGEST_COMMIT + 1))

    assert acknowledged == session.acknowledged == 2 * LARGEST_COMMIT + 1
    assert ledger.batches == [LARGEST_COMMIT, LARGEST_COMMIT, 1]


async def test_orders_only_go_further_and_end_with_the_session() -> None:
    session = WorkerSession(Ledger(), 1, 0)
    hearing = asyncio.ensure_future(_hear(session))
    await asyncio.sleep(0)

    for order in (GRACEFUL, GRACEFUL, KILL, GRACEFUL, KILL):
        session.stop(order)
        await asyncio.sleep(0)
    session.close()

    assert await hearing == [GRACEFUL, KILL]
    assert await _hear(session) == [GRACEFUL, KILL]


async def test_orders_that_were_given_before_anybody_listens_are_heard() -> None:
    session = WorkerSession(Ledger(), 1, 0)
    session.stop(KILL)
    session.close()
    session.stop(GRACEFUL)

    assert await _hear(session) == [KILL]


async def test_a_fenced_session_takes_nothing_and_says_who_is_next() -> None:
    ledger = Ledger()
    session = WorkerSession(ledger, 1, 0)
    hearing = asyncio.ensure_future(_hear(session))
    session.fence(3)
    session.fence(4)
    session.beat(7)

    with pytest.raises(WorkerFenced) as refusal:
        await session.receive(reports(1))

    assert refusal.value.metadata == {"attempt": "1", "current": "3"}
    assert await hearing == []
    assert ledger.beats == ledger.kept == []


async def test_a_connection_is_gone_once() -> None:
    ledger = Ledger()
    session = WorkerSession(ledger, 1, 0)
    session.beat(7)
    session.close()
    session.close()

    assert ledger.num_gone == 1
    assert ledger.beats == [7]


async def _hear(session: WorkerSession) -> list[Command]:
    return [order async for order in session.commands()]
