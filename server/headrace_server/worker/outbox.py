"""What the agent has to tell, in order, until the server keeps it.

Knows the reports and what may be left out of them; knows no connection (`link.py` reads from here) and no file (the
spool keeps the bytes).  While the server is away reports pile up, within bounds:

- above `Bounds.unacknowledged_bytes` on disk or `Bounds.memory_bytes` in memory the outbox is crowded: log lines are
  left out, and of step_completed only the newest every `thin_seconds`, and the one before any other report; a warning
  says so;
- above four times that, whoever reports waits.  Only the last report of all is always taken.

No report of any other kind is ever left out.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from headrace_server.rpc.wire.worker import report_to_proto
from headrace_server.trainers.reports import WarningRaised
from headrace_server.training.events import LogLine, LogSource
from headrace_server.training.session import ReportContent, TrainerEnded, WorkerReport
from headrace_server.worker.spool import Record, Spool
from headrace_server.worker.v1 import worker_service_pb2 as pb

LONGEST_TEXT = 8192

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much may wait."""

    unacknowledged_bytes: int = 64 << 20
    memory_bytes: int = 8 << 20
    thin_seconds: float = 10.0
    """Of step_completed, one in this time is kept while the outbox is crowded."""
    wait_factor: int = 4
    """Whoever reports waits above this many times the bounds."""


class Outbox:
    """See the module.  Any number may add; one reads."""

    def __init__(self, spool: Spool, bounds: Bounds | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._spool = spool
        self._bounds = bounds or Bounds()
        self._clock = clock
        self._order = asyncio.Lock()
        self._bell = asyncio.Event()
        self._room = asyncio.Event()
        self._is_crowded = False
        self._disk_problem = ""
        self._held: pb.Report | None = None  # the newest step that was left out so far
        self._kept_step_at = -1e9
        self._num_steps_left_out = 0
        self._num_lines_left_out = 0

    async def open(self) -> None:
        """Make the spool."""
        await asyncio.to_thread(self._spool.open)

    async def close(self) -> None:
        """Remove the spool and what is still in it."""
        await asyncio.to_thread(self._spool.close)

    @property
    def last(self) -> int:
        """The number of the newest report."""
        return self._spool.last

    @property
    def acknowledged(self) -> int:
        """The server keeps the reports up to this number."""
        return self._spool.acknowledged

    async def add(self, contents: Sequence[ReportContent]) -> None:
        """Report, in order.  Waits for room as the module says.

        Raises ValueError for a figure that the contract cannot hold; then nothing of `contents` is reported.
        """
        now = datetime.now(UTC)
        # The number is a place in the queue, which is only known when the report is sent.
        reports = [report_to_proto(WorkerReport(1, now, content)) for content in contents]
        if not any(isinstance(content, TrainerEnded) for content in contents):
            await self._wait_for_room()
        async with self._order:
            kept = self._select(reports)
            await asyncio.to_thread(self._spool.append, [report.SerializeToString() for report in kept])
            await self._tell_of_disk()
        self._ring()

    async def say(self, text: str) -> None:
        """Add a line of the agent's own to the job's log."""
        await self.add([LogLine(source=LogSource.WORKER, text=text[:LONGEST_TEXT])])

    async def read(self, after: int) -> list[pb.Report]:
        """The reports that follow number `after`, a part at a time; none when there are none yet."""
        records = await asyncio.to_thread(self._spool.read, after)
        return [_report_of(record) for record in records]

    async def wait_for_more(self, after: int) -> None:
        """Return once there is a report after number `after`."""
        while True:
            bell = self._bell  # taken before looking, so that no ring is missed
            if self.last > after:
                return
            await bell.wait()

    async def acknowledge(self, up_to: int) -> None:
        """Forget the reports that the server keeps."""
        await asyncio.to_thread(self._spool.acknowledge, up_to)
        self._room.set()
        self._ring()

    async def wait_until_acknowledged(self) -> None:
        """Return once the server keeps everything."""
        while True:
            bell = self._bell
            if self.acknowledged >= self.last:
                return
            await bell.wait()

    async def _wait_for_room(self) -> None:
        while self._fullness() > self._bounds.wait_factor:
            self._room.clear()
            await self._room.wait()

    def _fullness(self) -> float:
        """How much waits, as a share of the bounds; crowded above 1."""
        return max(
            self._spool.unacknowledged_bytes / self._bounds.unacknowledged_bytes,
            self._spool.memory_bytes / self._bounds.memory_bytes,
        )

    def _select(self, reports: Sequence[pb.Report]) -> list[pb.Report]:
        """Leave out what may be left out while the outbox is crowded, and say so once each way."""
        fullness = self._fullness()
        kept: list[pb.Report] = []
        if self._is_crowded and fullness < 0.5:
            self._is_crowded = False
            kept += self._release()
            kept.append(_own(LogLine(source=LogSource.WORKER, text=self._count_left_out())))
            self._num_steps_left_out = self._num_lines_left_out = 0
        elif not self._is_crowded and fullness > 1:
            self._is_crowded = True
            kept.append(_own(_THINNED))
            log.warning("outbox.crowded", bytes=self._spool.unacknowledged_bytes)
        if not self._is_crowded:
            return [*kept, *reports]
        for report in reports:
            kept += self._thin(report)
        return kept

    def _thin(self, report: pb.Report) -> list[pb.Report]:
        match report.WhichOneof("kind"):
            case "log_line":
                self._num_lines_left_out += 1
                return []
            case "step_completed":
                if self._held is not None:
                    self._num_steps_left_out += 1
                self._held = report
                if self._clock() - self._kept_step_at < self._bounds.thin_seconds:
                    return []
                self._kept_step_at = self._clock()
                return self._release()
            case _:
                return [*self._release(), report]

    def _release(self) -> list[pb.Report]:
        held, self._held = self._held, None
        return [] if held is None else [held]

    def _count_left_out(self) -> str:
        return (
            f"reports go up again; left out meanwhile: {self._num_steps_left_out} steps, "
            f"{self._num_lines_left_out} log lines"
        )

    async def _tell_of_disk(self) -> None:
        problem, known = self._spool.disk_problem, self._disk_problem
        self._disk_problem = problem
        if problem and not known:
            text = f"the worker's disk refuses reports ({problem}); they are kept in memory until it takes them again"
            warning = _own(WarningRaised(code="SPOOL_DISK_REFUSED", message=text))
            await asyncio.to_thread(self._spool.append, [warning.SerializeToString()])

    def _ring(self) -> None:
        self._bell.set()
        self._bell = asyncio.Event()


_THINNED = WarningRaised(
    code="REPORTS_THINNED",
    message="the server has not taken reports for long; log lines and most step reports are left out until it does",
)


def _own(content: ReportContent) -> pb.Report:
    return report_to_proto(WorkerReport(1, datetime.now(UTC), content))


def _report_of(record: Record) -> pb.Report:
    if record.content is None:
        message = "a report was lost: the worker's disk no longer holds what was written"
        report = _own(WarningRaised(code="REPORT_LOST", message=message))
    else:
        report = pb.Report.FromString(record.content)
    report.number = record.number
    return report
