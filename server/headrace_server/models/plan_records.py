"""What was measured of the plans of each version, in the database: one row for each version and environment.

Knows nothing of what a measurement says: its body is whatever the planner made of it.
"""

from datetime import datetime
from typing import Any, TypeAlias

from sqlalchemy import Connection, delete, insert, select

from headrace_server.database.database import Database
from headrace_server.database.tables import plan_measurements
from headrace_server.models.version import ModelVersion

MOST_ENVIRONMENTS = 4
"""Kept for each version, the newest: machines that share a database, and the releases that they are brought to."""

Record: TypeAlias = tuple[str, int, str, dict[str, Any]]
"""Model, version, environment, body."""


class PlanRecords:
    """The measurements of every version."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, version: ModelVersion, environment: str) -> dict[str, Any] | None:
        """What was measured of a version in this environment; None when nothing was."""
        query = select(plan_measurements.c.body).where(*_of(version), plan_measurements.c.environment == environment)
        async with self._database.read() as connection:
            body: dict[str, Any] | None = (await connection.execute(query)).scalar_one_or_none()
        return body

    async def put(
        self, version: ModelVersion, environment: str, body: dict[str, Any], measured_at: datetime
    ) -> list[str]:
        """Keep a measurement in the place of an earlier one in the same environment.

        Returns the environments whose measurements had to go for it, the oldest of too many.
        """

        def replace(connection: Connection) -> list[str]:
            of_environment = plan_measurements.c.environment == environment
            connection.execute(delete(plan_measurements).where(*_of(version), of_environment))
            connection.execute(
                insert(plan_measurements).values(
                    model=version.model,
                    version=version.version,
                    environment=environment,
                    body=body,
                    measured_at=measured_at,
                )
            )
            newest_first = (
                select(plan_measurements.c.environment)
                .where(*_of(version), ~of_environment)
                .order_by(plan_measurements.c.measured_at.desc())
            )
            dropped = list(connection.execute(newest_first).scalars())[MOST_ENVIRONMENTS - 1 :]
            is_dropped = plan_measurements.c.environment.in_(dropped)
            connection.execute(delete(plan_measurements).where(*_of(version), is_dropped))
            return dropped

        return await self._database.transact(replace)

    async def forget(self, version: ModelVersion) -> None:
        """Drop what was measured of a version in any environment."""

        def drop(connection: Connection) -> None:
            connection.execute(delete(plan_measurements).where(*_of(version)))

        await self._database.transact(drop)

    async def all(self) -> list[Record]:
        """Every measurement of every version."""
        columns = plan_measurements.c
        query = select(columns.model, columns.version, columns.environment, columns.body)
        async with self._database.read() as connection:
            return [
                (model, number, environment, body)
                for model, number, environment, body in await connection.execute(query)
            ]


def _of(version: ModelVersion) -> tuple[Any, Any]:
    return plan_measurements.c.model == version.model, plan_measurements.c.version == version.version
