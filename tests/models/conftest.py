"""A registry on an empty database and store."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from headrace_server.database.database import Database
from headrace_server.models.registry import Registry
from headrace_server.settings import ModelSettings
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
def registry(database: Database, store: LocalBlobStore, tmp_path: Path) -> Registry:
    return Registry(database, store, ModelSettings(max_upload_bytes=1 << 20), tmp_path / "scratch")
