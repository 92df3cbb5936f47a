"""Keeps jobs: creates each once, finds and lists them, and writes amendments, each in one transaction.

A transaction that has begun is finished even when its caller leaves; what it added is shown to readers afterwards.
Decides nothing about jobs: that is done by the functions that fill amendments in.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

import structlog
from sqlalchemy import Connection, select
from sqlalchemy.exc import IntegrityError

from headrace_server.database.database import Database
from headrace_server.database.tables import jobs
from headrace_server.errors import JobNotFound, NameTaken, RequestIdReused
from headrace_server.names import JobName
from headrace_server.pages import Page, PageRequest
from headrace_server.settings import TrainingSettings
from headrace_server.telemetry.metrics import Metrics
from headrace_server.training import history, rows
from headrace_server.training.amendment import Amendment
from headrace_server.training.events import Event, LogEntry, StateChanged
from headrace_server.training.filter import Condition
from headrace_server.training.job import Job
from headrace_server.training.journals import Appended, Journals, Stream
from headrace_server.training.owned_tasks import OwnedTasks
from headrace_server.training.rows import StoredJob
from headrace_server.training.sinks import cursors

R = TypeVar("R")
EntryT = TypeVar("EntryT", Event, LogEntry)

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Written:
    amendment: Amendment
    events: Appended[Event]
    log: Appended[LogEntry]


class JobStore:
    """All jobs.  One store has the database for itself."""

    def __init__(self, database: Database, journals: Journals, settings: TrainingSettings, metrics: Metrics) -> None:
        self._database = database
        self._journals = journals
        self._settings = settings
        self._metrics = metrics
        self._tasks = OwnedTasks()

    async def create(self, job: Job, request_digest: str) -> tuple[Job, bool]:
        """Keep a new job with its first event; returns it and True.

        A request id that is known with the same digest returns the job that is there, and False.
        Raises RequestIdReused, NameTaken.
        """
        try:
            return await self._tasks.finish(self._create(job, request_digest))
        except IntegrityError:  # another server was quicker with the same id: now it can be seen
            return await self._tasks.finish(self._create(job, request_digest))

    async def find_request(self, request_id: str, request_digest: str) -> Job | None:
        """The job of an earlier request with that id.  Raises RequestIdReused when its body was another."""
        async with self._database.read() as connection:
            found = await connection.run_sync(rows.fetch_request, request_id)
        return None if found is None else _same_request(request_id, request_digest, *found)

    async def exists(self, job: str) -> bool:
        """Whether there is a job of that id."""
        async with self._database.read() as connection:
            return (await connection.execute(select(jobs.c.id).where(jobs.c.id == job))).first() is not None

    async def get(self, job: str) -> StoredJob:
        """One job and its newest worker.  Raises JobNotFound."""
        async with self._database.read() as connection:
            stored = await connection.run_sync(rows.fetch, job)
        if stored is None:
            raise JobNotFound(str(JobName(job)))
        return stored

    async def list(self, page: PageRequest, conditions: Sequence[Condition]) -> Page[Job]:
        """A page of the jobs that meet all conditions, newest first.  Raises InvalidPageToken."""
        query = rows.select_page(conditions, page.after, page.size + 1)
        async with self._database.read() as connection:
            found = [rows.read(row).job for row in (await connection.execute(query)).all()]
        return page.page(found, [rows.page_key(job) for job in found])

    async def live(self) -> Sequence[Job]:
        """All jobs that are not over, in the order in which they were admitted."""
        query = rows.select_jobs().where(jobs.c.state.in_(rows.live_states())).order_by(jobs.c.created_at, jobs.c.id)
        async with self._database.read() as connection:
            return [rows.read(row).job for row in (await connection.execute(query)).all()]

    async def live_job_using(self, dataset: str) -> Job | None:
        """A job that is not over and trains on `datasets/{dataset}`."""
        query = rows.select_jobs().where(jobs.c.state.in_(rows.live_states()), jobs.c.dataset == f"datasets/{dataset}")
        async with self._database.read() as connection:
            row = (await connection.execute(query.limit(1))).first()
        return None if row is None else rows.read(row).job

    async def amend(self, job: str, change: Callable[[Amendment], R]) -> R:
        """Let `change` look at the job and fill in what is to be changed, write it, show it, return what it returned.

        `change` must not wait, and runs in the database's thread; when it raises, nothing is changed.  Amendments of
        one job take turns.
        Raises JobNotFound, StorageFull, and whatever `change` raises.
        """
        return await self._tasks.finish(self._amend(job, change))

    async def change(self, job: str, change: Callable[[Amendment], None]) -> Job:
        """As `amend`; returns the job as it is then."""

        def apply(amendment: Amendment) -> Job:
            change(amendment)
            return amendment.job

        return await self.amend(job, apply)

    async def delete(self, job: str) -> None:
        """Remove a job that is over, with both its histories.  Raises JobNotFound."""
        await self._tasks.finish(self._delete(job))

    async def close(self) -> None:
        """Finish the transactions under way."""
        await self._tasks.close()

    async def _create(self, job: Job, request_digest: str) -> tuple[Job, bool]:
        sinks = [sink.name for sink in self._settings.sinks]
        known = await self._database.transact(lambda connection: _create(connection, job, request_digest, sinks))
        if known is not None:
            return known, False
        self._journals.note_new_job()
        log.info("training.job_admitted", job=job.id, trainer=job.spec.trainer, model=job.spec.model)
        return job.model_copy(update={"latest_sequence": 1, "oldest_sequence": 1}), True

    async def _delete(self, job: str) -> None:
        async with self._journals.lock(job):
            if not await self._database.transact(lambda connection: rows.remove(connection, job)):
                raise JobNotFound(str(JobName(job)))
        log.info("training.job_deleted", job=job)

    async def _amend(self, job: str, change: Callable[[Amendment], R]) -> R:
        async with self._journals.lock(job):
            result, written = await self._database.transact(lambda connection: self._write(connection, job, change))
            if written is not None:
                has_ended = written.amendment.job.state.is_terminal
                self._journals.publish(job, "events", written.events, has_ended=has_ended)
                self._journals.publish(job, "logs", written.log, has_ended=has_ended)
        if written is not None:
            self._tell(written.amendment)
        return result

    def _write(self, connection: Connection, job: str, change: Callable[[Amendment], R]) -> tuple[R, _Written | None]:
        stored = rows.fetch(connection, job)
        if stored is None:
            raise JobNotFound(str(JobName(job)))
        log_bounds = history.bounds(connection, job, "logs")
        assert log_bounds is not None
        amendment = Amendment(stored, latest_log=log_bounds.latest, now=datetime.now(UTC))
        result = change(amendment)
        if not amendment.is_changed:
            return result, None
        rows.store_changes(connection, StoredJob(amendment.job, amendment.attempt))

        def append(stream: Stream, entries: Sequence[EntryT], oldest: int, keep: int) -> Appended[EntryT]:
            if not entries:
                return Appended(entries, oldest)
            history.append(connection, job, entries)
            kept = history.oldest_to_keep(oldest, entries[-1].sequence, keep)
            if kept > oldest:
                history.forget(connection, job, stream, kept)
            history.set_bounds(connection, job, stream, kept, entries[-1].sequence)
            return Appended(entries, kept)

        settings = self._settings
        events = append("events", amendment.events, stored.job.oldest_sequence, settings.keep_events)
        lines = append("logs", amendment.log, log_bounds.oldest, settings.keep_log_lines)
        return result, _Written(amendment, events, lines)

    def _tell(self, amendment: Amendment) -> None:
        job = amendment.job
        for left, to, reason in amendment.passed:
            log.info("training.state_changed", job=job.id, left=left, to=to, reason=reason, attempt=job.attempt)
        if amendment.passed and job.state.is_terminal:
            self._metrics.jobs.labels(job.spec.trainer, job.state).inc()
            if job.started_at is not None and job.ended_at is not None:
                seconds = (job.ended_at - job.started_at).total_seconds()
                self._metrics.job_seconds.labels(job.spec.trainer, job.state).observe(max(0.0, seconds))


def _same_request(request_id: str, digest: str, stored: StoredJob, known_digest: str) -> Job:
    if digest != known_digest:
        raise RequestIdReused(request_id, str(stored.job.name))
    return stored.job


def _create(connection: Connection, job: Job, request_digest: str, sinks: Sequence[str]) -> Job | None:
    """Write a new job with its first event; when its request is known, nothing: returns the job of that request."""
    if job.request_id and (found := rows.fetch_request(connection, job.request_id)):
        return _same_request(job.request_id, request_digest, *found)
    if rows.fetch(connection, job.id) is not None:
        raise NameTaken(str(job.name))
    first = Event(
        sequence=1,
        time=job.created_at,
        happening=StateChanged(from_state=None, to_state=job.state, reason="ADMITTED"),
    )
    rows.store_new(connection, job, request_digest)
    history.begin(connection, job.id)
    history.append(connection, job.id, [first])
    history.set_bounds(connection, job.id, "events", 1, 1)
    cursors.begin(connection, job.id, sinks)
    return None
