from pathlib import Path

import pytest

from headrace_server.storage.local import LocalBlobStore


@pytest.fixture
async def store(tmp_path: Path) -> LocalBlobStore:
    store = LocalBlobStore(tmp_path / "store")
    await store.open()
    return store
