import ctypes
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace_server.worker.process_tree import become_subreaper


@pytest.fixture
def subreaper() -> Iterator[None]:
    """As the agent's own program does, but not for the rest of the tests."""
    become_subreaper()
    yield
    ctypes.CDLL(None).prctl(36, 0, 0, 0, 0)


@pytest.fixture
def socket() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hr") as folder:
        yield Path(folder) / "w.sock"
