"""The command line against a scripted server that lives in a loop of its own thread."""

import asyncio
import threading
from collections.abc import Callable, Iterator

import pytest
from typer.testing import CliRunner, Result

from tests.doubles.scripted_server import ScriptedServer

Headrace = Callable[..., Result]


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    server, listens, leave = ScriptedServer(), threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with server.listen():
            listens.set()
            await leave.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert listens.wait(20)
    yield server
    loop.call_soon_threadsafe(leave.set)
    thread.join(20)
    loop.close()


@pytest.fixture
def headrace(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> Headrace:
    """Runs the command with these words, against the scripted server."""
    from headrace.cli.app import app

    monkeypatch.setenv("HEADRACE_SERVER", server.target)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("NO_COLOR", "1")
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])
