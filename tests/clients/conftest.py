from collections.abc import AsyncIterator

import pytest

from headrace import Client, Retry
from tests.doubles.given_clock import GivenClock
from tests.doubles.scripted_server import ScriptedServer


@pytest.fixture
def clock() -> GivenClock:
    return GivenClock()


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    server = ScriptedServer()
    async with server.listen():
        yield server


@pytest.fixture
async def client(server: ScriptedServer, clock: GivenClock) -> AsyncIterator[Client]:
    """A client whose waits take no time."""
    async with Client(server.target, retry=Retry(clock=clock)) as client:
        yield client
