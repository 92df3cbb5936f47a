"""Opens the database, brings its tables up to date, and gives out transactions.

SQLite (WAL, one writer) is the embedded default.  Knows no table by name.
"""

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from contextvars import Context, copy_context
from pathlib import Path
from typing import Any, TypeVar

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import ArgumentError, DBAPIError, InvalidRequestError, NoSuchModuleError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from headrace_server.errors import CannotStart, StorageFull

MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_SECONDS = 30

R = TypeVar("R")


class Database:
    """Transactions on one database, whose tables are those of this release.

    Writers of one process take turns; readers see the last committed state and wait for nobody.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._is_sqlite = engine.dialect.name == "sqlite"
        self._turn = asyncio.Lock()
        self._writer = _make_writer(engine.url) if self._is_sqlite else None
        self._thread = ThreadPoolExecutor(1, "database-writer")

    @classmethod
    async def open(cls, url: str) -> "Database":
        """Connect and bring the tables up to date.

        Raises CannotStart when the database cannot be reached or was written by a newer release.
        """
        try:
            engine = create_async_engine(url, pool_pre_ping=not url.startswith("sqlite"))
        except (ArgumentError, NoSuchModuleError, InvalidRequestError, ModuleNotFoundError) as error:
            raise CannotStart(f"the setting database.url cannot be used: {error}") from error
        if engine.dialect.name == "sqlite":
            await asyncio.to_thread(_probe_sqlite, engine.url)
            event.listen(engine.sync_engine, "connect", _prepare_sqlite)
            event.listen(engine.sync_engine, "begin", _begin_sqlite)
            event.listen(engine.sync_engine, "invalidate", _roll_back_sqlite)
        try:
            async with engine.connect() as connection:
                await connection.execution_options(headrace_writes=True)
                await connection.run_sync(_migrate)
                await connection.commit()
        except (OperationalError, DBAPIError) as error:
            await engine.dispose()
            raise CannotStart(f"the database {engine.url.render_as_string()} cannot be used: {error.orig}") from error
        except BaseException:
            await engine.dispose()
            raise
        return cls(engine)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A connection for reading."""
        async with self._engine.connect() as connection:
            yield connection

    async def transact(self, work: Callable[[Connection], R]) -> R:
        """Do `work` in a transaction: committed, and durable, when it returns; rolled back when it raises.

        With SQLite all of it happens in one go in a thread of its own.  So `work` must touch nothing that belongs to
        the loop, and wait for nothing.  What has begun is ended before a caller who is cancelled leaves.

        Raises StorageFull when the disk has no room, and what `work` raises.
        """
        with _telling_of_full_disks():
            if not self._is_sqlite:
                async with self._engine.begin() as connection:
                    return await connection.run_sync(work)
            async with self._turn:
                return await self._transact_in_turn(work)

    async def _transact_in_turn(self, work: Callable[[Connection], R]) -> R:
        if self._writer is None:
            async with self._engine.connect() as connection:
                await connection.execution_options(headrace_writes=True)
                async with connection.begin():
                    return await connection.run_sync(work)
        loop = asyncio.get_running_loop()
        working = loop.run_in_executor(self._thread, _do, self._writer, copy_context(), work)
        try:
            return await asyncio.shield(working)
        except asyncio.CancelledError:
            # It cannot be stopped, and the next one must not begin before.  Nobody wants to know how it ended.
            working.add_done_callback(lambda it: it.cancelled() or it.exception())
            await asyncio.wait([working])
            raise

    async def close(self) -> None:
        """Close every connection."""
        if self._writer is not None:
            await asyncio.to_thread(self._writer.dispose)
        self._thread.shutdown(wait=False)
        await self._engine.dispose()


def _make_writer(url: URL) -> Engine | None:
    """What `transact` writes with; None for a database in memory, which each engine would have one of."""
    if not url.database or url.database == ":memory:" or url.query:
        return None
    writer = create_engine(url.set(drivername="sqlite"), execution_options={"headrace_writes": True})
    event.listen(writer, "connect", _prepare_sqlite)
    event.listen(writer, "begin", _begin_sqlite)
    return writer


def _do(writer: Engine, context: Context, work: Callable[[Connection], R]) -> R:
    with writer.begin() as connection:
        return context.run(work, connection)


@contextlib.contextmanager
def _telling_of_full_disks() -> Iterator[None]:
    try:
        yield
    except OperationalError as error:
        if "disk is full" in str(error.orig):
            raise StorageFull(0) from error
        raise


def _probe_sqlite(url: URL) -> None:
    # The asynchronous driver leaves a thread behind, which complains into the log, when it cannot open a file.
    try:
        with contextlib.closing(sqlite3.connect(url.database or ":memory:", timeout=BUSY_SECONDS)) as connection:
            _let_read_while_written(connection)
    except sqlite3.Error as error:
        raise CannotStart(f"the database {url.database} cannot be used: {error}") from error


def _let_read_while_written(connection: sqlite3.Connection) -> None:
    """Switch the file to WAL, which it keeps.  SQLite lets nobody wait who does that to a new file beside others."""
    limit = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > limit:
                raise
            time.sleep(0.01)


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver must not begin transactions by itself; `_begin_sqlite` does
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")
    cursor.execute("PRAGMA synchronous = FULL")  # what was answered survives a power cut
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first and writes later can fail at once with "database is locked"; take the lock first.
    writes = connection.get_execution_options().get("headrace_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _roll_back_sqlite(connection: Any, _record: object, _reason: object) -> None:
    # A call that is cancelled in the middle of a statement has its connection closed, but SQLite ends the transaction
    # of a closed connection only when the last object that knows the statement is gone: until then nobody could write.
    with contextlib.suppress(Exception, asyncio.CancelledError):  # the reason for closing it is raised anyway
        connection.rollback()


def _migrate(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    script = ScriptDirectory.from_config(config)
    present = MigrationContext.configure(connection).get_current_revision()
    known = {revision.revision for revision in script.walk_revisions()}
    if present is not None and present not in known:
        raise CannotStart(
            f"the database was written by a newer release (revision {present}; this release knows up to "
            f"{script.get_current_head()}): install that release, or open another data folder"
        )
    command.upgrade(config, "head")
