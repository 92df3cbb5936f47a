"""What was measured of the plans of each version, in the database: one row for each version and environment.

Knows nothing of what a measurement says: its body is whatever the planner made of it.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete, insert, select

from headrace_server.database.database import Database
from headrace_server.database.tables import plan_measurements
from headrace_server.models.version import ModelVersion


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

    async def put(self, version: ModelVersion, environment: str, body: dict[str, Any], measured_at: datetime) -> None:
        """Keep a measurement in the place of an earlier one in the same environment."""

        def replace(connection: Connection) -> None:
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

        await self._database.transact(replace)

    async def forget(self, version: ModelVersion) -> None:
        """Drop what was measured of a version in any environment."""

        def drop(connection: Connection) -> None:
            connection.execute(delete(plan_measurements).where(*_of(version)))

        await self._database.transact(drop)


def _of(version: ModelVersion) -> tuple[Any, Any]:
    return plan_measurements.c.model == version.model, plan_measurements.c.version == version.version
