import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import select

from headrace_server.database.database import Database
from headrace_server.database.tables import dataset_versions
from headrace_server.datasets import catalog as catalog_module
from headrace_server.datasets.catalog import Catalog
from headrace_server.datasets.dataset import DatasetFormat, DatasetVersion, Description
from headrace_server.errors import DatasetNotFound, InvalidDataset, InvalidPageToken, InvalidSpec, StorageFull, TooLarge
from headrace_server.names import DatasetName
from headrace_server.pages import PageRequest
from headrace_server.settings import DatasetSettings
from headrace_server.storage.local import LocalBlobStore
from tests.doubles import contents
from tests.doubles.small_disk import small_files_only
from tests.doubles.until import until

TABLE = contents.csv("a,b", "1,x", "2,")
OTHER = contents.csv("a,b", "3,y")
FIRST_PAGE = PageRequest.parse(0, "")


async def stream(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def put(catalog: Catalog, dataset: str, content: bytes, file_name: str = "t.csv") -> DatasetVersion:
    return await catalog.store(dataset, stream(content), format=None, file_name=file_name, digest="")


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


async def nothing_is_kept(catalog: Catalog, store: LocalBlobStore, tmp_path: Path) -> bool:
    scratch = tmp_path / "scratch"
    is_scratch_empty = not scratch.exists() or not list(scratch.iterdir())
    no_rows = (await catalog.list(FIRST_PAGE)).items == []
    return is_scratch_empty and no_rows and await store.list("") == []


async def test_a_content_becomes_a_version_that_says_what_is_in_it(catalog: Catalog, store: LocalBlobStore) -> None:
    version = await catalog.store(
        "wine", stream(TABLE[:5], b"", TABLE[5:]), format=None, file_name="Wine.CSV", digest=digest_of(TABLE)
    )

    assert version.digest == digest_of(TABLE)
    assert str(version.name) == f"datasets/wine/versions/{version.digest[7:23]}"
    assert version.size_bytes == len(TABLE)
    assert version.format is DatasetFormat.CSV
    assert version.description.num_rows == 2
    assert [(column.name, column.type, column.num_missing) for column in version.description.columns] == [
        ("a", "int64", 0),
        ("b", "string", 1),
    ]
    assert await catalog.version(version.name) == version
    assert await catalog.version(DatasetName("wine")) == version
    assert await store.get_bytes(version.blob_key) == TABLE


async def test_the_same_content_is_the_same_version(catalog: Catalog) -> None:
    first = await put(catalog, "wine", TABLE)
    other = await put(catalog, "wine", OTHER)

    again = await put(catalog, "wine", TABLE)

    assert again == first
    found = await catalog.get("wine")
    assert (found.num_versions, found.latest, found.created_at) == (2, other, first.created_at)


async def test_many_callers_with_the_same_content_get_the_same_version(catalog: Catalog) -> None:
    versions = await asyncio.gather(*(put(catalog, "wine", TABLE) for _ in range(8)))

    assert len({version.name for version in versions}) == 1
    assert (await catalog.get("wine")).num_versions == 1


async def test_the_same_content_in_another_format_is_refused(catalog: Catalog) -> None:
    await put(catalog, "both", contents.npz(a=[1, 2]), "a.npz")

    with pytest.raises(InvalidDataset, match="same content but the format NPZ"):
        await put(catalog, "both", contents.npz(a=[1, 2]), "a.zip")


async def test_a_content_that_two_data_sets_share_goes_with_the_last_of_them(
    catalog: Catalog, store: LocalBlobStore
) -> None:
    shared = await put(catalog, "one", TABLE)
    await put(catalog, "two", TABLE)
    own = await put(catalog, "one", OTHER)

    await catalog.delete("one")

    assert await store.list("") == [shared.blob_key]
    assert (await catalog.version(DatasetName("two"))).digest == shared.digest
    with pytest.raises(DatasetNotFound):
        await catalog.version(own.name)

    await catalog.delete("two")

    assert await store.list("") == []
    with pytest.raises(DatasetNotFound):
        await catalog.delete("two")


async def test_storing_and_deleting_the_same_content_never_leaves_a_row_without_bytes(
    catalog: Catalog, store: LocalBlobStore, database: Database
) -> None:
    async def come_and_go(dataset: str) -> None:
        for _ in range(6):
            await put(catalog, dataset, TABLE)
            await catalog.delete(dataset)

    await asyncio.gather(*(come_and_go(f"d{number}") for number in range(3)), put(catalog, "stays", TABLE))

    async with database.read() as connection:
        digests = (await connection.scalars(select(dataset_versions.c.digest))).all()
    assert digests == [digest_of(TABLE)]
    assert await store.get_bytes(f"datasets/{digest_of(TABLE)[7:]}") == TABLE


@pytest.mark.parametrize(
    ("file_name", "named"), [("t.xls", ".csv, .parquet, .npz, .zip"), ("", "is missing"), ("csv", "endings")]
)
async def test_an_unknown_ending_names_the_known_ones(
    catalog: Catalog, store: LocalBlobStore, tmp_path: Path, file_name: str, named: str
) -> None:
    with pytest.raises(InvalidSpec, match=named) as caught:
        await put(catalog, "wine", TABLE, file_name)

    assert caught.value.violations[0].field == "file_name"
    assert await nothing_is_kept(catalog, store, tmp_path)


async def test_a_format_that_is_said_counts_more_than_the_ending(catalog: Catalog) -> None:
    version = await catalog.store("wine", stream(TABLE), format=DatasetFormat.CSV, file_name="wine.zip", digest="")

    assert version.format is DatasetFormat.CSV


async def test_bytes_that_do_not_have_the_digest_that_was_announced_are_refused(
    catalog: Catalog, store: LocalBlobStore, tmp_path: Path
) -> None:
    with pytest.raises(InvalidDataset, match=digest_of(TABLE)):
        await catalog.store("wine", stream(TABLE), format=None, file_name="t.csv", digest=digest_of(OTHER))
    with pytest.raises(InvalidSpec, match="digest"):
        await catalog.store("wine", stream(TABLE), format=None, file_name="t.csv", digest="md5:1234")

    assert await nothing_is_kept(catalog, store, tmp_path)


async def test_an_upload_is_cut_off_as_soon_as_it_is_too_large(
    catalog: Catalog, store: LocalBlobStore, tmp_path: Path
) -> None:
    num_taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal num_taken
        while True:
            num_taken += 1
            yield b"x" * (1 << 18)

    with pytest.raises(TooLarge, match=r"datasets\.max_upload_bytes") as caught:
        await catalog.store("wine", endless(), format=DatasetFormat.CSV, file_name="", digest="")

    assert num_taken == 5
    assert caught.value.metadata == {"what": "dataset", "limit_bytes": str(1 << 20)}
    assert await nothing_is_kept(catalog, store, tmp_path)


async def test_a_stream_that_breaks_leaves_nothing(catalog: Catalog, store: LocalBlobStore, tmp_path: Path) -> None:
    async def breaking() -> AsyncIterator[bytes]:
        yield TABLE
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await catalog.store("wine", breaking(), format=None, file_name="t.csv", digest="")

    assert await nothing_is_kept(catalog, store, tmp_path)


async def test_a_content_that_is_not_sound_leaves_nothing(
    catalog: Catalog, store: LocalBlobStore, tmp_path: Path
) -> None:
    with pytest.raises(InvalidDataset, match="row 2"):
        await put(catalog, "wine", contents.csv("a,b", "1,2,3"))

    assert await nothing_is_kept(catalog, store, tmp_path)


async def test_a_full_disk_leaves_nothing(database: Database, store: LocalBlobStore, tmp_path: Path) -> None:
    catalog = Catalog(database, store, DatasetSettings(), tmp_path / "scratch")
    with small_files_only(), pytest.raises(StorageFull):
        await put(catalog, "wine", b"a\n" + b"1\n" * (1 << 20))

    assert await nothing_is_kept(catalog, store, tmp_path)


async def test_an_upload_cancelled_at_any_point_leaves_a_version_with_bytes_or_no_version(
    catalog: Catalog, store: LocalBlobStore, tmp_path: Path
) -> None:
    outcomes: set[type] = set()
    for num_turns in range(1000):
        if DatasetVersion in outcomes:
            break
        task = asyncio.ensure_future(put(catalog, "wine", TABLE))
        for _ in range(num_turns):
            await asyncio.sleep(0.001)

        task.cancel()

        result = (await asyncio.gather(task, return_exceptions=True))[0]
        outcomes.add(type(result))
        assert list((tmp_path / "scratch").glob("*")) == []
        if (await catalog.list(FIRST_PAGE)).items:
            assert await store.get_bytes((await catalog.version(DatasetName("wine"))).blob_key) == TABLE
            await catalog.delete("wine")
        await catalog.sweep()
        assert await store.list("") == []
    assert outcomes == {asyncio.CancelledError, DatasetVersion}


async def test_a_caller_who_leaves_during_the_inspection_does_not_free_its_thread_early(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go_on = threading.Event()
    num_running = 0

    def slow(path: Path, format: DatasetFormat, settings: DatasetSettings) -> Description:  # noqa: A002
        nonlocal num_running
        num_running += 1
        assert may_go_on.wait(20)
        return Description(num_rows=1)

    monkeypatch.setattr(catalog_module, "inspect", slow)
    tables = [contents.csv("a", str(number)) for number in range(4)]
    tasks = [asyncio.ensure_future(put(catalog, "wine", table)) for table in tables]
    await until(lambda: num_running == catalog_module.CONCURRENT_INSPECTIONS)

    for task in tasks[:3]:
        task.cancel()
    done, _ = await asyncio.wait(tasks[:3], timeout=20)

    assert len(done) == 3
    assert num_running == catalog_module.CONCURRENT_INSPECTIONS
    may_go_on.set()
    assert (await tasks[3]).description.num_rows == 1
    assert len(list((tmp_path / "scratch").iterdir())) == 0


async def test_data_sets_are_listed_by_name_in_pages(catalog: Catalog) -> None:
    for dataset in ("c", "a", "b", "d", "e"):
        await put(catalog, dataset, TABLE)
    await put(catalog, "b", OTHER)

    found, token = [], ""
    while True:
        page = await catalog.list(PageRequest.parse(2, token))
        found.append([(dataset.id, dataset.num_versions) for dataset in page.items])
        if not (token := page.next_token):
            break

    assert found == [[("a", 1), ("b", 2)], [("c", 1), ("d", 1)], [("e", 1)]]


async def test_versions_are_listed_newest_first_in_pages(catalog: Catalog) -> None:
    stored = [await put(catalog, "wine", contents.csv("a", str(number))) for number in range(5)]
    await put(catalog, "other", TABLE)

    found, token = [], ""
    while True:
        page = await catalog.list_versions("wine", PageRequest.parse(2, token))
        found += page.items
        if not (token := page.next_token):
            break

    assert found == stored[::-1]
    assert (await catalog.get("wine")).latest == stored[-1]
    with pytest.raises(DatasetNotFound):
        await catalog.list_versions("nothing", FIRST_PAGE)
    with pytest.raises(InvalidPageToken):
        await catalog.list_versions("wine", PageRequest.parse(2, FIRST_PAGE.token_after("not a moment")))


async def test_a_clock_that_is_put_back_does_not_make_a_version_older(catalog: Catalog, database: Database) -> None:
    first = await put(catalog, "wine", TABLE)
    future = first.created_at.replace(year=first.created_at.year + 1)
    await database.transact(lambda it: it.execute(dataset_versions.update().values(created_at=future)).close())

    second = await put(catalog, "wine", OTHER)

    assert (await catalog.version(DatasetName("wine"))) == second


async def test_what_does_not_exist_is_not_found_by_its_name(catalog: Catalog) -> None:
    await put(catalog, "wine", TABLE)

    with pytest.raises(DatasetNotFound, match="'datasets/nothing'"):
        await catalog.get("nothing")
    with pytest.raises(DatasetNotFound, match="'datasets/wine/versions/0000000000000000'"):
        await catalog.version(DatasetName("wine", "0" * 16))


async def test_bytes_that_a_crash_left_without_a_version_are_swept(catalog: Catalog, store: LocalBlobStore) -> None:
    kept = await put(catalog, "wine", TABLE)
    await store.put_bytes(f"datasets/{'0' * 64}", b"orphan")
    await store.put_bytes("models/m", b"not mine")

    num_removed = await catalog.sweep()

    assert num_removed == 1
    assert await store.list("") == [kept.blob_key, "models/m"]


async def test_an_orphan_of_a_crash_does_not_keep_its_content_from_being_stored(
    catalog: Catalog, store: LocalBlobStore
) -> None:
    await store.put_bytes(f"datasets/{digest_of(TABLE)[7:]}", TABLE)

    version = await put(catalog, "wine", TABLE)

    assert await store.get_bytes(version.blob_key) == TABLE
