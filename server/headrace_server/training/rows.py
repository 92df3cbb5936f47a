"""Jobs as rows: reading a row into values, writing values into a row, and the queries for lists.

Knows SQL and the values; decides nothing.  What takes a connection blocks: it is meant for a thread, or `run_sync`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import BaseModel
from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    String,
    and_,
    delete,
    insert,
    or_,
    select,
    type_coerce,
    update,
)

from headrace_server.database.tables import jobs, journal_entries, journals, sink_cursors
from headrace_server.errors import InvalidPageToken
from headrace_server.names import DatasetName
from headrace_server.training.attempt import Attempt
from headrace_server.training.filter import Condition, FilterField
from headrace_server.training.job import Job
from headrace_server.training.states import JobState

_PROCESS_FIELDS = {"pid", "host", "trainer_pid", "manifest_key", "evaluated_step", "is_preempted", "ended"}


@dataclass(frozen=True, slots=True)
class StoredJob:
    """A job and its newest worker, as one transaction saw them."""

    job: Job
    attempt: Attempt

    @property
    def has_result(self) -> bool:
        """Whether the worker has left something to register, and still may."""
        is_wanted = self.job.state.has_worker and self.job.state is not JobState.CANCELLING
        return is_wanted and bool(self.attempt.manifest_key)


def live_states() -> list[str]:
    """The states in which a job is not over."""
    return [state.value for state in JobState if not state.is_terminal]


def select_jobs() -> Select[Any]:
    """All jobs, each with the ends of its events."""
    mine = (journals.c.job == jobs.c.id) & (journals.c.stream == "events")
    return select(jobs, journals.c.oldest_sequence, journals.c.latest_sequence).join(journals, mine)


def fetch(connection: Connection, job: str) -> StoredJob | None:
    """One job; None when there is none of that id."""
    row = (connection.execute(select_jobs().where(jobs.c.id == job))).one_or_none()
    return None if row is None else read(row)


def fetch_request(connection: Connection, request_id: str) -> tuple[StoredJob, str] | None:
    """The job that a request id belongs to, with the digest of that request."""
    row = (connection.execute(select_jobs().where(jobs.c.request_id == request_id))).one_or_none()
    return None if row is None else (read(row), row.request_digest)


def store_new(connection: Connection, job: Job, request_digest: str) -> None:
    """Insert the row of a new job."""
    dataset = DatasetName.parse(job.spec.dataset)
    row = {
        "id": job.id,
        "request_id": job.request_id or None,
        "request_digest": request_digest,
        "spec": _plain(job.spec),
        "labels": job.labels,
        "model": job.spec.model,
        "dataset": str(DatasetName(dataset.dataset)),
        "priority": job.spec.priority,
        "created_at": job.created_at,
        **_changeable(StoredJob(job, Attempt())),
    }
    connection.execute(insert(jobs).values(row))


def store_changes(connection: Connection, stored: StoredJob) -> None:
    """Write everything about a job that can change."""
    connection.execute(update(jobs).where(jobs.c.id == stored.job.id).values(_changeable(stored)))


def remove(connection: Connection, job: str) -> bool:
    """Delete a job with both its histories; whether it was there."""
    for table in (journal_entries, journals, sink_cursors):
        connection.execute(delete(table).where(table.c.job == job))
    return connection.execute(delete(jobs).where(jobs.c.id == job)).rowcount > 0


def read(row: Row[Any]) -> StoredJob:
    """The values of one row of `select_jobs`."""
    job = Job(
        id=row.id,
        spec=row.spec,
        labels=row.labels,
        request_id=row.request_id or "",
        state=row.state,
        state_message=row.state_message,
        latest_step=row.latest_step,
        latest_sequence=row.latest_sequence,
        oldest_sequence=row.oldest_sequence,
        latest_checkpoint=row.latest_checkpoint,
        best_checkpoint=row.best_checkpoint,
        failure=row.failure,
        model_version=row.model_version,
        attempt=row.attempt,
        restarts=row.restarts,
        created_at=row.created_at,
        started_at=row.started_at,
        ended_at=row.ended_at,
    )
    attempt = Attempt(
        number=row.attempt,
        token=row.attempt_token,
        acknowledged=row.attempt_acknowledged,
        **(row.attempt_process or {}),
    )
    return StoredJob(job, attempt)


def select_page(conditions: Sequence[Condition], after: str | None, size: int) -> Select[Any]:
    """Jobs that meet all conditions, newest first, after the one with the key `after`.  Raises InvalidPageToken."""
    query = select_jobs().where(*(_matches(condition) for condition in conditions))
    if after is not None:
        time, job = _parse_key(after)
        query = query.where(or_(jobs.c.created_at < time, and_(jobs.c.created_at == time, jobs.c.id < job)))
    return query.order_by(jobs.c.created_at.desc(), jobs.c.id.desc()).limit(size)


def page_key(job: Job) -> str:
    """Where a job stands in the order of lists."""
    return f"{job.created_at.isoformat()} {job.id}"


def _parse_key(key: str) -> tuple[datetime, str]:
    time, _, job = key.partition(" ")
    try:
        return datetime.fromisoformat(time), job
    except ValueError as error:
        raise InvalidPageToken from error


def _matches(condition: Condition) -> ColumnElement[bool]:
    match condition.field:
        case FilterField.STATE:
            return jobs.c.state == condition.value
        case FilterField.MODEL:
            return jobs.c.model == condition.value
        case FilterField.DATASET:
            if DatasetName.parse(condition.value).version is None:
                return jobs.c.dataset == condition.value
            return type_coerce(jobs.c.spec["dataset"].as_string(), String) == condition.value
        case FilterField.LABEL:
            return type_coerce(jobs.c.labels[condition.label].as_string(), String) == condition.value


def _changeable(stored: StoredJob) -> dict[str, Any]:
    job, attempt = stored.job, stored.attempt
    return {
        "state": job.state.value,
        "state_message": job.state_message,
        "latest_step": _plain(job.latest_step),
        "latest_checkpoint": _plain(job.latest_checkpoint),
        "best_checkpoint": _plain(job.best_checkpoint),
        "failure": _plain(job.failure),
        "model_version": job.model_version,
        "restarts": job.restarts,
        "attempt": attempt.number,
        "attempt_token": attempt.token,
        "attempt_acknowledged": attempt.acknowledged,
        "attempt_process": attempt.model_dump(mode="json", include=_PROCESS_FIELDS),
        "started_at": job.started_at,
        "ended_at": job.ended_at,
    }


def _plain(value: BaseModel | None) -> Any:
    """As JSON has it.  Through text, because only text writes NaN and infinity in a way that every database takes."""
    return None if value is None else json.loads(value.model_dump_json())
