from typing import Any

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect

from headrace_server.database.database import MIGRATIONS, Database
from headrace_server.database.tables import metadata


def differences(connection: Connection) -> list[Any]:
    return list(compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), metadata))


def script() -> ScriptDirectory:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    return ScriptDirectory.from_config(config)


async def test_the_migrations_make_exactly_the_tables_that_the_code_knows(database: Database) -> None:
    async with database.read() as connection:
        assert await connection.run_sync(differences) == []
        tables = await connection.run_sync(lambda sync: set(inspect(sync).get_table_names()))

    assert tables == {*metadata.tables, "alembic_version"}


async def test_every_step_can_be_taken_back_and_again(database: Database) -> None:
    def down_and_up(connection: Connection) -> list[str]:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
        left = inspect(connection).get_table_names()
        command.upgrade(config, "head")
        return left

    left = await database.transact(down_and_up)
    async with database.read() as connection:
        found = await connection.run_sync(differences)

    assert left == ["alembic_version"]
    assert found == []


def test_there_is_one_line_of_migrations() -> None:
    assert len(script().get_heads()) == 1
    assert len(script().get_bases()) == 1
