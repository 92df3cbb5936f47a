from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from headrace_server.database.database import Database
from headrace_server.datasets.catalog import Catalog
from headrace_server.settings import DatasetSettings
from headrace_server.storage.local import LocalBlobStore


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = await Database.open(f"sqlite+aiosqlite:///{tmp_path / 'headrace.db'}")
    yield database
    await database.close()


@pytest.fixture
async def store(tmp_path: Path) -> LocalBlobStore:
    store = LocalBlobStore(tmp_path / "store")
    await store.open()
    return store


@pytest.fixture
def settings(tmp_path: Path) -> DatasetSettings:
    (tmp_path / "root").mkdir()
    return DatasetSettings(roots=(tmp_path / "root",), max_upload_bytes=1 << 20)


@pytest.fixture
def catalog(database: Database, store: LocalBlobStore, settings: DatasetSettings, tmp_path: Path) -> Catalog:
    return Catalog(database, store, settings, tmp_path / "scratch")
