"""Looks at which release wrote a database, and changes nothing in it."""

from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.ext.asyncio import create_async_engine

from headrace_server.database.database import MIGRATIONS
from headrace_server.errors import CannotStart


async def look_at_revision(url: str) -> tuple[str | None, str]:
    """The revision of a database, None when it has no tables yet, and the newest that this release knows.

    Raises CannotStart when the database cannot be read or was written by a newer release.
    """
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    script = ScriptDirectory.from_config(config)
    newest = script.get_current_head()
    assert newest is not None
    try:
        engine = create_async_engine(url)
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
        raise CannotStart(f"database.url {url!r} cannot be used: {error}") from error
    try:
        async with engine.connect() as connection:
            present = await connection.run_sync(lambda plain: MigrationContext.configure(plain).get_current_revision())
    except DBAPIError as error:
        raise CannotStart(f"the database {engine.url.render_as_string()} cannot be read: {error.orig}") from error
    finally:
        await engine.dispose()
    if present is not None and present not in {revision.revision for revision in script.walk_revisions()}:
        raise CannotStart(f"the database was written by a newer release (revision {present}; this one knows {newest})")
    return present, newest
