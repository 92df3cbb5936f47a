"""Rows of histories: appending, reading and forgetting entries of a job's events and log lines.

Knows SQL and the two kinds of entries; knows no readers.  Blocks: everything here is meant for a thread, or `run_sync`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, delete, insert, select, update

from headrace_server.database.tables import jobs, journal_entries, journals
from headrace_server.training.events import HAPPENING, Event, LogEntry, LogLine
from headrace_server.training.states import JobState

LARGEST_REMOVAL = 1000
"""Entries removed together: few enough not to be felt, many enough not to be done at every append."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """The ends of what is kept of one history."""

    oldest: int
    latest: int
    has_ended: bool


def bounds(connection: Connection, job: str, stream: str) -> Bounds | None:
    """The ends of one history; None when there is no such job."""
    query = (
        select(journals.c.oldest_sequence, journals.c.latest_sequence, jobs.c.state)
        .join(jobs, jobs.c.id == journals.c.job)
        .where(journals.c.job == job, journals.c.stream == stream)
    )
    row = (connection.execute(query)).one_or_none()
    return None if row is None else Bounds(row[0], row[1], JobState(row[2]).is_terminal)


def begin(connection: Connection, job: str) -> None:
    """Make the two histories of a new job, both empty."""
    rows = [{"job": job, "stream": stream, "oldest_sequence": 1, "latest_sequence": 0} for stream in ("events", "logs")]
    connection.execute(insert(journals), rows)


def read(
    connection: Connection, job: str, stream: Literal["events", "logs"], after: int, up_to: int
) -> Sequence[Event | LogEntry]:
    """The kept entries with after < sequence <= up_to, in order."""
    query = (
        select(journal_entries.c.sequence, journal_entries.c.time, journal_entries.c.body)
        .where(
            journal_entries.c.job == job,
            journal_entries.c.stream == stream,
            journal_entries.c.sequence > after,
            journal_entries.c.sequence <= up_to,
        )
        .order_by(journal_entries.c.sequence)
    )
    rows = (connection.execute(query)).all()
    if stream == "events":
        return [Event(sequence=row[0], time=row[1], happening=HAPPENING.validate_json(row[2])) for row in rows]
    return [LogEntry(sequence=row[0], time=row[1], line=LogLine.model_validate_json(row[2])) for row in rows]


def append(connection: Connection, job: str, entries: Sequence[Event | LogEntry]) -> None:
    """Store entries of one history, which follow its newest one without a gap."""
    connection.execute(insert(journal_entries), [_row(job, entry) for entry in entries])


def set_bounds(connection: Connection, job: str, stream: str, oldest: int, latest: int) -> None:
    """Note the ends of a history, and remove what is older than its oldest entry."""
    mine = (journals.c.job == job, journals.c.stream == stream)
    connection.execute(update(journals).where(*mine).values(oldest_sequence=oldest, latest_sequence=latest))


def forget(connection: Connection, job: str, stream: str, before: int) -> None:
    """Remove the entries older than `before`."""
    connection.execute(
        delete(journal_entries).where(
            journal_entries.c.job == job, journal_entries.c.stream == stream, journal_entries.c.sequence < before
        )
    )


def oldest_to_keep(oldest: int, latest: int, keep: int) -> int:
    """The oldest entry of those to be kept.

    It moves in steps, so that removing is rare: between `keep` and a tenth more are kept.
    """
    step = min(LARGEST_REMOVAL, max(1, keep // 10))
    surplus = latest - oldest + 1 - keep
    return oldest if surplus < step else oldest + surplus


def _row(job: str, entry: Event | LogEntry) -> dict[str, Any]:
    happening = entry.happening if isinstance(entry, Event) else entry.line
    return {
        "job": job,
        "stream": "events" if isinstance(entry, Event) else "logs",
        "sequence": entry.sequence,
        "time": entry.time,
        "kind": happening.kind,
        "body": happening.model_dump_json(),
    }
