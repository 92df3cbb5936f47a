import asyncio
import contextlib
import gc
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from sqlalchemy import Connection, delete, func, insert, select, text
from sqlalchemy.exc import IntegrityError

from headrace_server.database.database import Database
from headrace_server.database.tables import dataset_versions, datasets
from headrace_server.errors import CannotStart, StorageFull
from tests.doubles.small_disk import full_tmpfs

NOW = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)


async def add(database: Database, dataset: str) -> None:
    await database.transact(lambda it: it.execute(insert(datasets).values(id=dataset, created_at=NOW)).close())


async def ids(database: Database) -> list[str]:
    async with database.read() as connection:
        return list((await connection.scalars(select(datasets.c.id).order_by(datasets.c.id))).all())


async def test_what_was_written_is_there_after_opening_again(url: str) -> None:
    first = await Database.open(url)
    await add(first, "a")
    await first.close()

    second = await Database.open(url)

    assert await ids(second) == ["a"]
    await second.close()


async def test_opening_a_new_database_from_several_sides_at_once_makes_one(url: str) -> None:
    opened = await asyncio.gather(*(Database.open(url) for _ in range(8)))

    await add(opened[0], "a")

    assert [await ids(database) for database in opened] == [["a"]] * 8
    for database in opened:
        await database.close()


def insert_next(connection: Connection) -> None:
    number = connection.scalar(select(func.count()).select_from(datasets))
    connection.execute(insert(datasets).values(id=f"d{number:03}", created_at=NOW))


async def test_writers_take_turns_so_that_reading_before_writing_loses_nothing(database: Database) -> None:
    async def count_up() -> None:
        for _ in range(5):
            await database.transact(insert_next)

    await asyncio.gather(*(count_up() for _ in range(8)))

    assert await ids(database) == [f"d{number:03}" for number in range(40)]


async def test_two_processes_take_turns_too(url: str, database: Database) -> None:
    other = await Database.open(url)

    async def count_up(of: Database) -> None:
        for _ in range(10):
            await of.transact(insert_next)

    await asyncio.gather(count_up(database), count_up(other))
    await other.close()

    assert len(await ids(database)) == 20


async def test_readers_wait_for_no_writer_and_see_only_what_is_committed(database: Database) -> None:
    begun, may_end = threading.Event(), threading.Event()

    def linger(connection: Connection) -> None:
        connection.execute(insert(datasets).values(id="a", created_at=NOW))
        begun.set()
        assert may_end.wait(20)

    lingering = asyncio.ensure_future(database.transact(linger))
    assert await asyncio.to_thread(begun.wait, 20)
    async with asyncio.timeout(60):
        seen = await ids(database)
    may_end.set()
    await lingering

    assert seen == []
    assert await ids(database) == ["a"]


async def test_a_write_that_is_cancelled_anywhere_lets_the_next_one_write_at_once(database: Database) -> None:
    """With the collector off, as a busy server is between two of its runs: what is forgotten then stays."""

    def replace(connection: Connection) -> None:
        connection.execute(delete(datasets))
        connection.execute(insert(datasets), [{"id": f"d{number}", "created_at": NOW} for number in range(50)])
        connection.execute(select(datasets)).all()

    async def write() -> None:
        await database.transact(replace)

    gc.disable()
    try:
        outcomes = set()
        for num_turns in range(120):
            task = asyncio.ensure_future(write())
            for _ in range(num_turns // 2):
                await asyncio.sleep(0.0001 if num_turns % 2 else 0)

            task.cancel()

            outcomes.add(type((await asyncio.gather(task, return_exceptions=True))[0]))
            async with asyncio.timeout(60):
                await write()
            assert len(await ids(database)) == 50
    finally:
        gc.enable()
    assert asyncio.CancelledError in outcomes


async def test_a_transaction_in_one_go_is_whole_or_nothing_and_takes_its_turn(database: Database) -> None:
    def insert_and_count(name: str) -> Callable[[Connection], int]:
        def work(connection: Connection) -> int:
            before = connection.scalar(select(func.count()).select_from(datasets))
            connection.execute(insert(datasets).values(id=name, created_at=NOW))
            assert before is not None
            return before

        return work

    async def count_up(name: str) -> int:
        return await database.transact(insert_and_count(name))

    counts = await asyncio.gather(*(count_up(f"d{number}") for number in range(6)), add(database, "other"))
    assert max(count for count in counts if count is not None) in (5, 6)
    assert len(await ids(database)) == 7

    def insert_and_raise(connection: Connection) -> None:
        connection.execute(insert(datasets).values(id="never", created_at=NOW))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await database.transact(insert_and_raise)
    with pytest.raises(IntegrityError):
        await database.transact(insert_and_count("d1"))
    assert "never" not in await ids(database)
    assert await count_up("after") == 7


async def test_a_transaction_in_one_go_ends_before_its_caller_leaves(database: Database) -> None:
    begun, may_end = threading.Event(), threading.Event()

    def linger(connection: Connection) -> None:
        connection.execute(insert(datasets).values(id="a", created_at=NOW))
        begun.set()
        assert may_end.wait(20)

    lingering = asyncio.ensure_future(database.transact(linger))
    assert await asyncio.to_thread(begun.wait, 20)
    lingering.cancel()
    adding = asyncio.ensure_future(add(database, "b"))
    done, _ = await asyncio.wait([lingering, adding], timeout=0.1)
    assert not done
    may_end.set()

    with pytest.raises(asyncio.CancelledError):
        await lingering
    await adding
    assert await ids(database) == ["a", "b"]


async def test_a_transaction_in_one_go_is_as_durable_as_any(database: Database) -> None:
    def look(connection: Connection) -> tuple[int, str, int]:
        asked = (connection.exec_driver_sql(f"PRAGMA {it}").scalar_one() for it in ("synchronous", "journal_mode"))
        return (*asked, connection.exec_driver_sql("PRAGMA foreign_keys").scalar_one())

    assert await database.transact(look) == (2, "wal", 1)


async def test_a_database_in_memory_takes_transactions_in_one_go_too() -> None:
    database = await Database.open("sqlite+aiosqlite:///:memory:")
    try:
        await database.transact(lambda it: it.execute(insert(datasets).values(id="a", created_at=NOW)).close())
        assert await ids(database) == ["a"]
    finally:
        await database.close()


async def test_moments_come_back_in_utc(database: Database) -> None:
    elsewhere = NOW.astimezone(timezone(timedelta(hours=5, minutes=30)))
    await database.transact(lambda it: it.execute(insert(datasets).values(id="a", created_at=elsewhere)).close())

    async with database.read() as connection:
        found = await connection.scalar(select(datasets.c.created_at))

    assert found == NOW
    assert found is not None
    assert found.tzinfo is UTC


async def test_versions_go_with_their_data_set_and_do_not_come_without_it(database: Database) -> None:
    version = {
        "version": "0" * 16, "digest": "sha256:", "format": "CSV", "size_bytes": 1, "description": {}, "source_uri": "",
        "created_at": NOW,
    }  # fmt: skip

    def insert_version(connection: Connection) -> None:
        connection.execute(insert(dataset_versions).values(dataset="a", **version))

    with pytest.raises(IntegrityError):
        await database.transact(insert_version)
    await add(database, "a")
    await database.transact(insert_version)

    await database.transact(lambda it: it.execute(delete(datasets)).close())

    async with database.read() as connection:
        assert await connection.scalar(select(func.count()).select_from(dataset_versions)) == 0


async def test_a_database_of_a_newer_release_is_refused_and_left_alone(url: str, database: Database) -> None:
    await database.transact(lambda it: it.execute(text("UPDATE alembic_version SET version_num = '9999'")).close())

    with pytest.raises(CannotStart, match=r"newer release \(revision 9999"):
        await Database.open(url)

    async with database.read() as connection:
        assert await connection.scalar(text("SELECT version_num FROM alembic_version")) == "9999"


async def test_a_file_that_is_no_database_is_refused_and_left_alone(url: str, tmp_path: Path) -> None:
    (tmp_path / "headrace.db").write_bytes(b"something else entirely" * 500)

    with pytest.raises(CannotStart, match=r"headrace\.db cannot be used: file is not a database"):
        await Database.open(url)

    assert (tmp_path / "headrace.db").read_bytes() == b"something else entirely" * 500


async def test_a_damaged_database_is_refused(url: str, tmp_path: Path) -> None:
    await (await Database.open(url)).close()
    content = bytearray((tmp_path / "headrace.db").read_bytes())
    content[100:4096] = b"\xff" * (4096 - 100)
    (tmp_path / "headrace.db").write_bytes(content)

    with pytest.raises(CannotStart, match=r"malformed|not a database"):
        await Database.open(url)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("sqlite+aiosqlite:////dev/null/headrace.db", "unable to open database file"),
        ("sqlite+aiosqlite:////no/such/folder/headrace.db", "unable to open database file"),
        ("nonsense", "cannot be used"),
        ("nonsense://host/name", "cannot be used"),
        ("sqlite:///x.db", "cannot be used"),
    ],
)
async def test_a_database_that_cannot_be_opened_is_named(url: str, said: str) -> None:
    with pytest.raises(CannotStart, match=said):
        await Database.open(url)


async def test_a_full_disk_is_told_as_such_and_the_transaction_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    with full_tmpfs(folder) as is_mounted:
        if not is_mounted:
            pytest.skip("mounting a file system needs more rights")
        database = await Database.open(f"sqlite+aiosqlite:///{folder / 'headrace.db'}")
        await add(database, "kept")

        with pytest.raises(StorageFull):
            await write_very_much(database)

        assert await ids(database) == ["kept"]
        await database.close()


async def write_very_much(database: Database) -> None:
    def fill(connection: Connection) -> None:
        for number in range(20_000):
            rows = [{"id": f"{number}-{row}" + "x" * 50, "created_at": NOW} for row in range(200)]
            connection.execute(insert(datasets), rows)

    await database.transact(fill)


WRITER = textwrap.dedent(
    """
    import asyncio, sys
    from datetime import UTC, datetime
    from sqlalchemy import insert
    from headrace_server.database.database import Database
    from headrace_server.database.tables import datasets

    def insert_halves(connection, number):
        for half in ("a", "b"):
            row = {"id": f"{number}-{half}", "created_at": datetime.now(UTC)}
            connection.execute(insert(datasets).values(row))

    async def main():
        database = await Database.open(sys.argv[1])
        for number in range(100_000):
            await database.transact(lambda connection: insert_halves(connection, number))
            print(number, flush=True)

    asyncio.run(main())
    """
)


@pytest.fixture
async def left_by_a_killed_writer(url: str) -> AsyncIterator[tuple[int, list[str]]]:
    writer = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WRITER, url, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert writer.stdout is not None
    async with asyncio.timeout(120):
        while int(await writer.stdout.readline()) < 20:
            pass
        writer.kill()
        said = (await writer.stdout.read()).split()
        await writer.wait()
    database = await Database.open(url)
    yield int(said[-1]) if said else 20, await ids(database)
    await database.close()


async def test_what_was_answered_survives_a_kill_and_halves_do_not(
    left_by_a_killed_writer: tuple[int, list[str]],
) -> None:
    last, found = left_by_a_killed_writer

    numbers = {int(dataset.split("-")[0]) for dataset in found}

    assert numbers >= set(range(last + 1))
    assert len(found) == 2 * len(numbers)
    assert len(numbers) <= last + 2


async def test_the_settings_of_sqlite_are_those_that_the_promises_need(database: Database, tmp_path: Path) -> None:
    async with database.read() as connection:
        found = {
            name: await connection.scalar(text(f"PRAGMA {name}"))
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }

    assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
    with contextlib.closing(sqlite3.connect(tmp_path / "headrace.db")) as file:
        assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)
