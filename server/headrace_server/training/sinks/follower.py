"""Tells one sink of everything that happens to jobs, from where it was: reads what is durable, tells, notes how far.

What waits, waits in the database, and no more than one batch is in memory.  The sink may be away for as long as
histories are kept; a job never notices.  Knows neither what sinks do, nor how jobs come to their histories.
"""

import asyncio
from collections.abc import Callable
from typing import Literal, TypeVar

import structlog
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from headrace_server.database.database import Database
from headrace_server.errors import HeadraceError
from headrace_server.settings import SinkSettings
from headrace_server.telemetry.metrics import Metrics
from headrace_server.training.setbacks import Setbacks
from headrace_server.training.sinks import cursors
from headrace_server.training.sinks.account import describe_event, describe_run
from headrace_server.training.sinks.sink import Batch, SinkRefused, SinkUnavailable
from headrace_server.training.sinks.thread import SinkHangs, SinkThread

JOBS_A_ROUND = 100
TRIES_AFTER_FAULTS = 5
"""How often a batch is told to a sink that raises what no sink should."""
FIRST_PAUSE_SECONDS = 0.5

R = TypeVar("R")

log = structlog.get_logger()


class Follower:
    """One sink on its way through the histories of all jobs."""

    def __init__(self, settings: SinkSettings, sink: SinkThread, database: Database, metrics: Metrics) -> None:
        self.name = settings.name
        self._settings = settings
        self._sink = sink
        self._database = database
        self._metrics = metrics
        self._setbacks = Setbacks(FIRST_PAUSE_SECONDS)
        self._troubles = Setbacks(FIRST_PAUSE_SECONDS)
        self._is_away = False
        self._is_hurried = asyncio.Event()
        self._is_idle = asyncio.Event()
        self._bell = asyncio.Event()

    def ring(self) -> None:
        """Something was added to a history."""
        self._is_idle.clear()
        self._bell.set()

    async def run(self) -> None:
        """Follow until cancelled."""
        is_new = True
        while True:
            try:
                if is_new:
                    await self._database.transact(lambda connection: cursors.adopt(connection, self.name))
                    is_new = False
                await self._follow()
            except (SQLAlchemyError, HeadraceError, OSError) as error:  # the database's: it may pass
                self._troubles.note()
                log.warning("training.sink_delayed", sink=self.name, error=repr(error))
            except Exception:  # our own fault: the sink must not stand still because of it
                self._troubles.note()
                log.exception("training.sink_failed", sink=self.name)
            await asyncio.sleep(self._troubles.delay_seconds())

    async def drain(self, seconds: float) -> None:
        """Have the sink told of all there is, without waiting for more, if that takes no longer than this."""
        self._is_hurried.set()
        self.ring()
        try:
            async with asyncio.timeout(seconds):
                await self._is_idle.wait()
        except TimeoutError:
            log.warning("training.sink_left_behind", sink=self.name)  # the next server tells it the rest

    async def close(self, seconds: float) -> None:
        """Close the sink; `run` has been cancelled before."""
        try:
            await self._sink.close(seconds)
        except Exception as error:  # noqa: BLE001 - a stranger's code may raise anything, and it is over anyway
            log.warning("training.sink_not_closed", sink=self.name, error=repr(error))

    async def _follow(self) -> None:
        while True:
            self._bell.clear()  # before looking, so that no ring is missed
            while await self._tell_round():
                pass  # there is more than fits together
            self._troubles.forget()
            if not self._bell.is_set():
                self._is_idle.set()
            await self._bell.wait()
            await self._gather()

    async def _tell_round(self) -> bool:
        """Tell a batch of every job that has something; whether there was more than that."""
        jobs = await self._read(lambda it: cursors.due(it, self.name, JOBS_A_ROUND))
        sizes = [await self._tell(job) for job in jobs]
        if jobs:
            await self._count()
        return (len(jobs) == JOBS_A_ROUND and any(sizes)) or self._settings.batch_entries in sizes

    async def _gather(self) -> None:
        """Let more come, so that it is told together."""
        try:
            async with asyncio.timeout(self._settings.period_seconds):
                await self._is_hurried.wait()
        except TimeoutError:
            pass

    async def _tell(self, job: str) -> int:
        """Tell the sink the next entries of one job, and note that; how many there were."""
        found = await self._read(lambda it: cursors.read(it, self.name, job, self._settings.batch_entries))
        if found is None:
            return 0
        if found.num_missed:
            self._metrics.sink_entries.labels(self.name, "dropped").inc(found.num_missed)
            log.warning("training.sink_fell_behind", sink=self.name, job=job, missed=found.num_missed)
        batch = Batch(describe_run(found.job), [describe_event(event) for event in found.events])
        outcome = await self._deliver(batch)
        latest = found.events[-1].sequence
        await self._database.transact(lambda it: cursors.advance(it, self.name, job, latest))
        self._metrics.sink_entries.labels(self.name, outcome).inc(len(batch.entries))
        return len(batch.entries)

    async def _deliver(self, batch: Batch) -> Literal["sent", "failed"]:
        """Ask the sink until it has taken the batch, or refused it."""
        num_faults = 0
        while True:
            try:
                await self._sink.write(batch, self._settings.deadline_seconds)
            except SinkRefused as error:
                return self._leave_out(batch, "refused", error)
            except SinkHangs as error:
                self._note_away("hangs", error)
            except SinkUnavailable as error:
                self._note_away("unavailable", error)
            except Exception as error:  # noqa: BLE001 - a stranger's code may raise anything; it is logged
                num_faults += 1
                if num_faults == TRIES_AFTER_FAULTS:
                    return self._leave_out(batch, "raised", error)
                self._note_away("raised", error)
            else:
                self._note_back()
                return "sent"
            await self._count()
            await asyncio.sleep(self._setbacks.delay_seconds())

    def _leave_out(self, batch: Batch, reason: str, error: Exception) -> Literal["failed"]:
        self._metrics.sink_failures.labels(self.name, reason).inc()
        log.warning(
            "training.sink_refused",
            sink=self.name,
            job=batch.run.id,
            first=batch.entries[0].sequence,
            last=batch.entries[-1].sequence,
            reason=reason,
            error=repr(error),
        )
        self._note_back()
        return "failed"

    def _note_away(self, reason: str, error: Exception) -> None:
        self._metrics.sink_failures.labels(self.name, reason).inc()
        self._setbacks.note()
        if not self._is_away:  # once: it may be away for days
            log.warning("training.sink_unavailable", sink=self.name, reason=reason, error=repr(error))
        self._is_away = True

    def _note_back(self) -> None:
        self._setbacks.forget()
        if self._is_away:
            log.info("training.sink_recovered", sink=self.name)
        self._is_away = False

    async def _count(self) -> int:
        num_waiting = await self._read(lambda it: cursors.count_waiting(it, self.name))
        self._metrics.sink_waiting_entries.labels(self.name).set(num_waiting)
        return num_waiting

    async def _read(self, query: Callable[[Connection], R]) -> R:
        async with self._database.read() as connection:
            return await connection.run_sync(query)
