"""The histories that somebody follows right now: opened from the database for the first reader, gone with the last.

Also holds the order between committing entries and showing them: both happen under the job's lock, and so does opening.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeAlias, TypeVar
from weakref import WeakValueDictionary

from sqlalchemy.ext.asyncio import AsyncConnection

from headrace_server.database.database import Database
from headrace_server.errors import JobNotFound
from headrace_server.names import JobName
from headrace_server.telemetry.metrics import Metrics
from headrace_server.training import history
from headrace_server.training.events import Event, LogEntry
from headrace_server.training.journal import Journal, Numbered

Stream: TypeAlias = Literal["events", "logs"]
EntryT = TypeVar("EntryT", bound=Numbered)

MOST_PAGE_READS = 4
"""Pages read at the same time, of all journals: readers must not use up the connections that others need."""


@dataclass(frozen=True, slots=True)
class Appended(Generic[EntryT]):
    """What one transaction added to one history."""

    entries: Sequence[EntryT]
    oldest: int


class Journals:
    """Every journal that has readers."""

    def __init__(self, database: Database, metrics: Metrics) -> None:
        self._database = database
        self._metrics = metrics
        self._open: dict[tuple[str, Stream], Journal[Any]] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._page_reads = asyncio.Semaphore(MOST_PAGE_READS)
        self._is_draining = False
        self._listeners: list[Callable[[], None]] = []

    def listen(self, listener: Callable[[], None]) -> None:
        """Have `listener` called whenever events of any job have become durable."""
        self._listeners.append(listener)

    def lock(self, job: str) -> asyncio.Lock:
        """What is held while entries of a job are committed and then shown."""
        return self._locks.setdefault(job, asyncio.Lock())

    def publish(self, job: str, stream: Stream, appended: Appended[Any], *, has_ended: bool) -> None:
        """Show readers what is durable by now.  The caller holds the job's lock."""
        self._metrics.journal_appends.labels(stream).inc(len(appended.entries))
        if stream == "events" and appended.entries:
            self._tell()
        if journal := self._open.get((job, stream)):
            journal.publish(appended.entries, oldest=appended.oldest, has_ended=has_ended)

    def note_new_job(self) -> None:
        """A new job and its first event are durable by now; nobody can follow it yet."""
        self._metrics.journal_appends.labels("events").inc()
        self._tell()

    async def follow_events(self, job: str, after: int, quiet_seconds: float) -> AsyncIterator[Event | None]:
        """As Journal.follow, of a job's events.  Raises JobNotFound."""
        async with self._reading(job, "events", after) as journal:
            async for entry in journal.follow(after, quiet_seconds):
                yield entry

    async def follow_logs(self, job: str, after: int, quiet_seconds: float) -> AsyncIterator[LogEntry | None]:
        """As Journal.follow, of the lines of a job's log.  Raises JobNotFound."""
        async with self._reading(job, "logs", after) as journal:
            async for entry in journal.follow(after, quiet_seconds):
                yield entry

    async def latest(self, job: str, stream: Stream) -> int:
        """The sequence of the newest entry, 0 before the first.  Raises JobNotFound."""
        if journal := self._open.get((job, stream)):
            return journal.latest
        async with self._database.read() as connection:
            return (await self._bounds(connection, job, stream)).latest

    def drain(self) -> None:
        """End all readers, now and from now on, with Draining."""
        self._is_draining = True
        for journal in self._open.values():
            journal.drain()

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()

    @asynccontextmanager
    async def _reading(self, job: str, stream: Stream, after: int) -> AsyncIterator[Journal[Any]]:
        journal = await self._opened(job, stream)
        journal.num_readers += 1
        readers = self._metrics.journal_readers.labels(stream)
        readers.inc()
        if after > 0:
            self._metrics.stream_resumes.labels(stream).inc()
        try:
            yield journal
        finally:
            readers.dec()
            journal.num_readers -= 1
            if journal.num_readers == 0:
                self._open.pop((job, stream), None)

    async def _opened(self, job: str, stream: Stream) -> Journal[Any]:
        key = (job, stream)
        if journal := self._open.get(key):
            return journal
        async with self.lock(job):  # nothing is committed or shown between reading the ends and listening
            if journal := self._open.get(key):
                return journal
            async with self._database.read() as connection:
                bounds = await self._bounds(connection, job, stream)

            async def read_page(after: int, up_to: int) -> Sequence[Any]:
                async with self._page_reads, self._database.read() as connection:
                    return await connection.run_sync(history.read, job, stream, after, up_to)

            journal = Journal(read_page, oldest=bounds.oldest, latest=bounds.latest, has_ended=bounds.has_ended)
            if self._is_draining:
                journal.drain()
            self._open[key] = journal
            return journal

    async def _bounds(self, connection: AsyncConnection, job: str, stream: Stream) -> history.Bounds:
        bounds = await connection.run_sync(history.bounds, job, stream)
        if bounds is None:
            raise JobNotFound(str(JobName(job)))
        return bounds
