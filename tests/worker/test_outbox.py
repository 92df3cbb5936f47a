"""Reports wait in order, within bounds, and only those that may be left out ever are."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from headrace_server.rpc.wire.worker import report_from_proto
from headrace_server.trainers.reports import EvaluationCompleted, PhaseChanged, StepCompleted, WarningRaised
from headrace_server.training.events import LogLine, LogSource
from headrace_server.training.session import Outcome, ReportContent, TrainerEnded
from headrace_server.worker.outbox import Bounds, Outbox
from headrace_server.worker.spool import Spool


def step(number: int) -> StepCompleted:
    return StepCompleted(step=number, epoch=1, fraction=0, loss=1, learning_rate=0.1, samples_per_second=1)


def line(text: str) -> LogLine:
    return LogLine(source=LogSource.STDOUT, text=text)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool", segment_bytes=2000)


@pytest.fixture
async def outbox(spool: Spool, clock: Clock) -> AsyncIterator[Outbox]:
    outbox = Outbox(spool, Bounds(unacknowledged_bytes=1000, memory_bytes=500, thin_seconds=10), clock)
    await outbox.open()
    yield outbox
    await outbox.close()


async def contents(outbox: Outbox, after: int = 0) -> list[ReportContent]:
    found: list[ReportContent] = []
    while part := await outbox.read(after + len(found)):
        reports = [report_from_proto(report) for report in part]
        assert [report.number for report in reports] == [after + len(found) + 1 + index for index in range(len(part))]
        found += [report.content for report in reports]
    return found


async def crowd(outbox: Outbox) -> int:
    """Fill the outbox above its bound; returns the last number."""
    while not any(isinstance(content, WarningRaised) for content in await contents(outbox)):
        await outbox.add([PhaseChanged(phase="x" * 100)])
    return outbox.last


async def test_reports_come_back_in_order_with_numbers(outbox: Outbox) -> None:
    said: list[ReportContent] = [PhaseChanged(phase="starting"), step(1), line("hello"), step(2)]

    await outbox.add(said[:1])
    await outbox.add(said[1:])

    assert await contents(outbox) == said


async def test_a_reader_is_woken_by_a_report(outbox: Outbox) -> None:
    waiting = asyncio.create_task(outbox.wait_for_more(0))
    await asyncio.sleep(0)
    assert not waiting.done()

    await outbox.add([step(1)])

    await asyncio.wait_for(waiting, 60)


async def test_waiting_for_acknowledgement_ends_with_the_last_report(outbox: Outbox) -> None:
    await outbox.add([step(1), step(2)])
    waiting = asyncio.create_task(outbox.wait_until_acknowledged())

    await outbox.acknowledge(1)
    await asyncio.sleep(0)
    assert not waiting.done()
    await outbox.acknowledge(2)

    await asyncio.wait_for(waiting, 60)
    assert await contents(outbox) == []


async def test_a_crowded_outbox_thins_steps_and_lines_and_nothing_else(outbox: Outbox, clock: Clock) -> None:
    last = await crowd(outbox)
    clock.now = 100

    for number in range(1, 100):
        await outbox.add([step(number), line("noise")])
    evaluation = EvaluationCompleted(step=99, epoch=1, metrics={}, is_best=True, num_rows=1)
    await outbox.add([evaluation])
    clock.now = 111
    await outbox.add([step(100)])

    assert await contents(outbox, last) == [step(1), step(99), evaluation, step(100)]


async def test_it_says_once_that_it_leaves_out_and_once_what_it_left_out(outbox: Outbox, clock: Clock) -> None:
    await crowd(outbox)
    for number in range(1, 6):
        await outbox.add([step(number), line("noise")])
    last = outbox.last

    await outbox.acknowledge(outbox.last)
    await outbox.add([step(6)])

    after = await contents(outbox, last)
    assert after[0] == step(5), "the newest step that was held back goes up first"
    assert isinstance(after[1], LogLine)
    assert "3 steps, 5 log lines" in after[1].text
    assert after[2:] == [step(6)]


async def test_far_above_the_bound_whoever_reports_waits(outbox: Outbox, spool: Spool) -> None:
    await crowd(outbox)
    async with asyncio.timeout(60):
        while spool.unacknowledged_bytes <= 4 * 1000:  # four times the bound
            await outbox.add([PhaseChanged(phase="y" * 500)])

    adding = asyncio.create_task(outbox.add([PhaseChanged(phase="one too many")]))
    await asyncio.sleep(0)
    await outbox.add([TrainerEnded(Outcome.DIED)])  # who came later and need not wait is done

    assert not adding.done()
    await outbox.acknowledge(outbox.last)
    await asyncio.wait_for(adding, 60)


async def test_a_disk_that_refuses_is_told_once(outbox: Outbox, spool: Spool, tmp_path: Path) -> None:
    (tmp_path / "spool").rmdir()

    await outbox.add([step(1)])
    await outbox.add([step(2)])

    first, warning, second = await contents(outbox)
    assert (first, second) == (step(1), step(2))
    assert isinstance(warning, WarningRaised)
    assert warning.code == "SPOOL_DISK_REFUSED"


async def test_a_report_that_the_disk_lost_is_a_warning_in_its_place(outbox: Outbox, tmp_path: Path) -> None:
    await outbox.add([step(1), step(2)])
    (file,) = (tmp_path / "spool").iterdir()

    file.write_bytes(b"")

    lost = await contents(outbox)
    assert [content.code for content in lost if isinstance(content, WarningRaised)] == ["REPORT_LOST"] * 2


async def test_a_figure_that_cannot_be_sent_adds_nothing(outbox: Outbox) -> None:
    with pytest.raises(ValueError, match="range"):
        await outbox.add([step(1), step(2**63)])

    assert outbox.last == 0


async def test_an_adder_that_is_cancelled_does_not_keep_others_from_adding(outbox: Outbox) -> None:
    adding = asyncio.create_task(outbox.add([step(1)]))
    await asyncio.sleep(0)
    adding.cancel()
    await asyncio.wait([adding])

    await outbox.add([step(2)])

    assert (await contents(outbox))[-1] == step(2)
