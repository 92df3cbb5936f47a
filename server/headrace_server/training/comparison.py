"""Puts jobs side by side: what was asked for differently, how good they became, what they took, and with what.

Looks only; knows no wire.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Connection, Select, func, select

from headrace_server.database.database import Database
from headrace_server.database.tables import journal_entries
from headrace_server.errors import HeadraceError, InvalidSpec, Violation
from headrace_server.models.version import ModelVersion
from headrace_server.names import JobName, ModelName
from headrace_server.trainers.reports import EvaluationCompleted
from headrace_server.training.events import CheckpointSaved
from headrace_server.training.goods import Models
from headrace_server.training.job import Job
from headrace_server.training.jobs import JobStore
from headrace_server.training.paths import by_path

MOST_JOBS = 20


@dataclass(frozen=True, slots=True)
class Tally:
    """What the history of one job says, as far as it is kept."""

    latest_evaluation: EvaluationCompleted | None = None
    best_evaluation: EvaluationCompleted | None = None
    num_checkpoints: int = 0
    checkpoint_bytes: int = 0
    num_warnings: int = 0


@dataclass(frozen=True, slots=True)
class Compared:
    """One of the jobs."""

    job: Job
    tally: Tally
    queued_seconds: float
    elapsed_seconds: float | None
    """None before its first worker."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that is not the same in all."""

    path: str
    values: tuple[str, ...]
    """One for each, in their order; empty where there is none."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Jobs side by side."""

    jobs: tuple[Compared, ...]
    spec_differences: tuple[Difference, ...]
    lineage_differences: tuple[Difference, ...]


class Comparer:
    """Looks at several jobs."""

    def __init__(self, jobs: JobStore, models: Models, database: Database) -> None:
        self._jobs = jobs
        self._models = models
        self._database = database

    async def compare(self, names: Sequence[JobName]) -> Comparison:
        """Put jobs side by side, in the order given.  Raises InvalidSpec, JobNotFound."""
        if not 2 <= len(names) <= MOST_JOBS:
            raise InvalidSpec([Violation("names", f"must be 2 to {MOST_JOBS} jobs, not {len(names)}")])
        if len({*names}) < len(names):
            raise InvalidSpec([Violation("names", "must name each job once")])
        now = datetime.now(UTC)
        jobs = [(await self._jobs.get(name.job)).job for name in names]
        tallies = []
        for job in jobs:
            async with self._database.read() as connection:
                tallies.append(await connection.run_sync(tally, job.id))
        versions = await asyncio.gather(*(self._version(job) for job in jobs))
        return Comparison(
            jobs=tuple(_compared(job, found, now) for job, found in zip(jobs, tallies, strict=True)),
            spec_differences=differences([by_path(job.spec.model_dump(mode="json")) for job in jobs]),
            lineage_differences=differences(
                [origin(job, version) for job, version in zip(jobs, versions, strict=True)]
            ),
        )

    async def _version(self, job: Job) -> ModelVersion | None:
        if not job.model_version:
            return None
        try:
            return await self._models.resolve(ModelName.parse(job.model_version))
        except HeadraceError:
            return None  # it is gone; the job says of itself what it can


def differences(sides: Sequence[Mapping[str, str]]) -> tuple[Difference, ...]:
    """What is not the same on all sides, by path, in alphabetical order."""
    found = []
    for path in sorted({path for side in sides for path in side}):
        values = tuple(side.get(path, "") for side in sides)
        if len({*values}) > 1:
            found.append(Difference(path, values))
    return tuple(found)


def origin(job: Job, version: ModelVersion | None) -> dict[str, str]:
    """Where the result of a job comes from, flat; of a job without one, what its specification says."""
    start = job.spec.start_from
    known = {
        "dataset_version": job.spec.dataset,
        "dataset_digest": job.spec.dataset_digest,
        "start_from": "" if start is None else start.name,
        "start_from_digest": "" if start is None else start.digest,
    }
    if version is not None:
        lineage = version.lineage
        known |= {"code_version": lineage.code_version, "checkpoint_digest": lineage.checkpoint_digest}
        known |= {f"environment.{name}": value for name, value in lineage.environment.items()}
    return known


def tally(connection: Connection, job: str) -> Tally:
    """Look through the history of one job, in the database: it may be long."""
    evaluations = _entries(job, "evaluation_completed").order_by(journal_entries.c.sequence.desc()).limit(1)
    latest = connection.execute(evaluations).scalar_one_or_none()
    best = connection.execute(
        evaluations.where(journal_entries.c.body.contains('"is_best":true', autoescape=True))
    ).scalar_one_or_none()
    saved = [
        CheckpointSaved.model_validate_json(body)
        for body in connection.execute(_entries(job, "checkpoint_saved")).scalars()
    ]
    counted = select(func.count()).select_from(_entries(job, "warning_raised").subquery())
    return Tally(
        latest_evaluation=None if latest is None else EvaluationCompleted.model_validate_json(latest),
        best_evaluation=None if best is None else EvaluationCompleted.model_validate_json(best),
        num_checkpoints=len(saved),
        checkpoint_bytes=sum(one.size_bytes for one in saved),
        num_warnings=int(connection.execute(counted).scalar_one()),
    )


def _entries(job: str, kind: str) -> Select[str]:
    return select(journal_entries.c.body).where(
        journal_entries.c.job == job, journal_entries.c.stream == "events", journal_entries.c.kind == kind
    )


def _compared(job: Job, found: Tally, now: datetime) -> Compared:
    started_at = job.started_at
    return Compared(
        job,
        found,
        queued_seconds=max(0.0, ((started_at or job.ended_at or now) - job.created_at).total_seconds()),
        elapsed_seconds=None if started_at is None else max(0.0, ((job.ended_at or now) - started_at).total_seconds()),
    )
