"""How far each sink has come with each job, as rows: what makes it go on after a restart where it was.

Knows SQL; knows no sinks.  What takes a connection blocks: it is meant for a thread, or `run_sync`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, and_, exists, func, insert, literal, select, update

from headrace_server.database.tables import jobs, journals, sink_cursors
from headrace_server.training import history, rows
from headrace_server.training.events import Event
from headrace_server.training.job import Job
from headrace_server.training.states import JobState


@dataclass(frozen=True, slots=True)
class Due:
    """Entries of one job that a sink has not had."""

    job: Job
    events: Sequence[Event]
    num_missed: int
    """Entries before them that are no longer kept: the sink was away for too long."""


def begin(connection: Connection, job: str, sinks: Iterable[str]) -> None:
    """Have sinks follow a new job from its first entry."""
    if found := [{"sink": sink, "job": job, "sequence": 0, "is_complete": False} for sink in sinks]:
        connection.execute(insert(sink_cursors), found)


def adopt(connection: Connection, sink: str) -> None:
    """Have a sink follow every job that is not over and that it does not follow yet, as one that is new in a house."""
    known = exists().where(sink_cursors.c.job == jobs.c.id, sink_cursors.c.sink == sink)
    new = select(literal(sink), jobs.c.id, literal(0), literal(False)).where(
        jobs.c.state.in_(rows.live_states()), ~known
    )
    connection.execute(insert(sink_cursors).from_select(["sink", "job", "sequence", "is_complete"], new))


def due(connection: Connection, sink: str, most_jobs: int) -> list[str]:
    """Jobs that have entries for a sink, those that it has least of first."""
    query = (
        select(sink_cursors.c.job)
        .join(journals, _events_of(sink_cursors.c.job))
        .where(*_open(sink), journals.c.latest_sequence > sink_cursors.c.sequence)
        .order_by(sink_cursors.c.sequence, sink_cursors.c.job)
        .limit(most_jobs)
    )
    return list(connection.execute(query).scalars())


def read(connection: Connection, sink: str, job: str, most_entries: int) -> Due | None:
    """The next entries of one job; None when there are none, or no such job any more."""
    stored = rows.fetch(connection, job)
    query = select(sink_cursors.c.sequence).where(*_open(sink), sink_cursors.c.job == job)
    after = connection.execute(query).scalar_one_or_none()
    if stored is None or after is None:
        return None
    first = max(after + 1, stored.job.oldest_sequence)
    found = history.read(connection, job, "events", first - 1, first - 1 + most_entries)
    events = [entry for entry in found if isinstance(entry, Event)]
    return Due(stored.job, events, num_missed=first - 1 - after) if events else None


def advance(connection: Connection, sink: str, job: str, sequence: int) -> None:
    """Note that a sink has had everything up to an entry; it is done with a job that is over and has no more."""
    has_ended = exists().where(
        jobs.c.id == job,
        jobs.c.state.in_([state.value for state in JobState if state.is_terminal]),
        _events_of(jobs.c.id),
        journals.c.latest_sequence <= sequence,
    )
    connection.execute(
        update(sink_cursors)
        .where(*_open(sink), sink_cursors.c.job == job)
        .values(sequence=sequence, is_complete=has_ended)
    )


def count_waiting(connection: Connection, sink: str) -> int:
    """How many entries a sink has not had."""
    query = (
        select(func.sum(journals.c.latest_sequence - sink_cursors.c.sequence))
        .join(journals, _events_of(sink_cursors.c.job))
        .where(*_open(sink))
    )
    return int(connection.execute(query).scalar() or 0)


def _open(sink: str) -> tuple[ColumnElement[bool], ...]:
    return (sink_cursors.c.sink == sink, sink_cursors.c.is_complete.is_(False))


def _events_of(job: ColumnElement[str]) -> ColumnElement[bool]:
    return and_(journals.c.job == job, journals.c.stream == "events")
