"""Every table, on one page.  A change here needs a migration in `migrations/versions/`."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
)
from sqlalchemy.engine import Dialect

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
    }
)


class UtcDateTime(TypeDecorator[datetime]):
    """A moment.  SQLite forgets time zones, so every moment is stored and returned in UTC."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert to UTC on the way in."""
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        """Say that it is UTC on the way out."""
        if value is None:
            return None
        moment: datetime = value
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


jobs = Table(
    "jobs",
    metadata,
    Column("id", String(63), primary_key=True),
    Column("request_id", String(128), nullable=True, unique=True),
    Column("request_digest", String(64), nullable=False),
    Column("spec", JSON, nullable=False),
    Column("labels", JSON, nullable=False),
    # Copies of parts of the specification, for filters and for the queue.
    Column("model", String(80), nullable=False, index=True),
    Column("dataset", String(80), nullable=False, index=True),
    Column("priority", Integer, nullable=False),
    Column("state", String(16), nullable=False, index=True),
    Column("state_message", Text, nullable=False),
    Column("latest_step", JSON(none_as_null=True), nullable=True),
    Column("latest_checkpoint", JSON(none_as_null=True), nullable=True),
    Column("best_checkpoint", JSON(none_as_null=True), nullable=True),
    Column("failure", JSON(none_as_null=True), nullable=True),
    Column("model_version", String(100), nullable=False),
    Column("restarts", Integer, nullable=False),
    # The newest worker: its number, its secret, the last of its reports that is kept, and its processes.
    Column("attempt", Integer, nullable=False),
    Column("attempt_token", String(64), nullable=False),
    Column("attempt_acknowledged", BigInteger, nullable=False),
    Column("attempt_process", JSON(none_as_null=True), nullable=True),
    Column("created_at", UtcDateTime, nullable=False),
    Column("started_at", UtcDateTime, nullable=True),
    Column("ended_at", UtcDateTime, nullable=True),
    Index("ix_jobs_created_at_id", "created_at", "id"),
)

# One row for each job and stream ("events", "logs"): the ends of what is kept.
journals = Table(
    "journals",
    metadata,
    Column("job", String(63), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("stream", String(8), primary_key=True),
    Column("oldest_sequence", BigInteger, nullable=False),
    Column("latest_sequence", BigInteger, nullable=False),
)

journal_entries = Table(
    "journal_entries",
    metadata,
    Column("job", String(63), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("stream", String(8), primary_key=True),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("time", UtcDateTime, nullable=False),
    Column("kind", String(32), nullable=False),
    Column("body", Text, nullable=False),
)

# How far each sink (a tracker of experiments) has come with the events of each job.
sink_cursors = Table(
    "sink_cursors",
    metadata,
    Column("sink", String(63), primary_key=True),
    Column("job", String(63), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("sequence", BigInteger, nullable=False),
    # Whether the job is over and the sink has all of it.
    Column("is_complete", Boolean, nullable=False),
    Index("ix_sink_cursors_sink_is_complete", "sink", "is_complete"),
)

datasets = Table(
    "datasets",
    metadata,
    Column("id", String(63), primary_key=True),
    Column("created_at", UtcDateTime, nullable=False),
)

dataset_versions = Table(
    "dataset_versions",
    metadata,
    Column("dataset", String(63), ForeignKey("datasets.id", ondelete="CASCADE"), primary_key=True),
    # The first 16 hexadecimal digits of the digest.
    Column("version", String(16), primary_key=True),
    Column("digest", String(80), nullable=False, index=True),
    Column("format", String(16), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("description", JSON, nullable=False),
    Column("source_uri", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)

models = Table(
    "models",
    metadata,
    Column("id", String(63), primary_key=True),
    Column("latest_version", Integer, nullable=False),
    # How its versions are served, where that was changed.
    Column("serving", JSON(none_as_null=True), nullable=True),
    Column("created_at", UtcDateTime, nullable=False),
)

model_versions = Table(
    "model_versions",
    metadata,
    Column("model", String(63), ForeignKey("models.id", ondelete="CASCADE"), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    # "job:…" or "upload:…": the same origin is the same version, however often it is registered.
    Column("origin", String(200), nullable=True, unique=True),
    Column("origin_digest", String(80), nullable=False),
    Column("body", JSON, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)

model_aliases = Table(
    "model_aliases",
    metadata,
    Column("model", String(63), ForeignKey("models.id", ondelete="CASCADE"), primary_key=True),
    Column("alias", String(63), primary_key=True),
    Column("version", Integer, nullable=False),
    Column("assigned_at", UtcDateTime, nullable=False),
)

# What was measured of the ways to run a version, by hardware and versions of libraries.
plan_measurements = Table(
    "plan_measurements",
    metadata,
    Column("model", String(63), ForeignKey("models.id", ondelete="CASCADE"), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("environment", String(32), primary_key=True),
    Column("body", JSON, nullable=False),
    Column("measured_at", UtcDateTime, nullable=False),
)
