"""Agents that are started ahead of their jobs: few, for a while, and gone with the server."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from headrace_server.launchers import warm_pool
from headrace_server.launchers.process import AGENT_LOG_FILE, ProcessLauncher
from headrace_server.launchers.processes import AGENT_PID_FILE, is_alive, recall
from headrace_server.launchers.warm_pool import Warmth
from tests.doubles.until import until

REPOSITORY = Path(__file__).parents[2]

# Waits for its folder, then says so in it and lives on; without "--wait" its folder is its argument.
AGENT = """
    import sys, time
    print("born", flush=True)
    folder = sys.stdin.readline().strip() if sys.argv[1] == "--wait" else sys.argv[1]
    if folder:
        open(folder + "/" + ("warm" if sys.argv[1] == "--wait" else "cold"), "w").close()
        time.sleep(600)
"""


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm_pool, "REFILL_SECONDS", 0.01)


class World:
    """A launcher with a pool, and what it told."""

    def __init__(self, folder: Path, *, size: int, seconds: float, has_memory: bool) -> None:
        self.folder = folder
        program = folder / "program.py"
        program.write_text(textwrap.dedent(AGENT), encoding="utf-8")
        self.told: list[int] = []
        warmth = Warmth(folder / ".warm", size, seconds, lambda: has_memory, self.told.append)
        self.launcher = ProcessLauncher((sys.executable, "-S", str(program)), warmth=warmth)

    async def launch(self, job: str) -> Path:
        """Launch the agent of a job; its folder."""
        folder = self.folder / job
        folder.mkdir()
        await self.launcher.launch(job, 1, folder)
        await until(lambda: (folder / "warm").exists() or (folder / "cold").exists())
        return folder

    async def is_full(self, size: int) -> None:
        await until(lambda: bool(self.told) and self.told[-1] == size)

    async def was_full(self, times: int) -> None:
        """Wait until an agent was ready for so many times, whether or not it has been let go since."""
        await until(lambda: self.told.count(1) >= times)

    def waiting(self) -> list[psutil.Process]:
        children = [child for child in psutil.Process().children() if is_alive(child)]
        return [child for child in children if "--wait" in child.cmdline()]


@asynccontextmanager
async def world(folder: Path, *, size: int = 1, seconds: float = 60, has_memory: bool = True) -> AsyncIterator[World]:
    made = World(folder, size=size, seconds=seconds, has_memory=has_memory)
    try:
        yield made
    finally:
        await made.launcher.close()
        for job in list(folder.iterdir()):  # noqa: ASYNC240
            if (job / AGENT_PID_FILE).exists():
                await made.launcher.kill(job.name, 1, job, 0)


async def test_the_first_job_pays_for_its_agent_and_the_next_finds_one(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        first = await it.launch("first")
        await it.is_full(1)
        [ready] = it.waiting()
        second = await it.launch("second")

        assert (first / "cold").exists()
        assert (second / "warm").exists()
        assert recall(second / AGENT_PID_FILE) == ready
        assert (second / AGENT_LOG_FILE).read_text() == "born\n"
        await it.is_full(1)


async def test_an_agent_that_was_taken_is_found_and_killed_like_any_other(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        await it.launch("first")
        await it.is_full(1)
        second = await it.launch("second")
        process = recall(second / AGENT_PID_FILE)
        assert process is not None
        assert await it.launcher.ending("second", 1, second) is None
        (second / AGENT_PID_FILE).unlink()  # as if it had been lost: the mark is enough

        assert await it.launcher.kill("second", 1, second, 0) == 1

        assert not is_alive(process)


async def test_so_many_wait_and_no_more(tmp_path: Path) -> None:
    async with world(tmp_path, size=2) as it:
        await it.launch("first")
        await it.is_full(2)

        assert len(it.waiting()) == 2


async def test_nobody_waits_where_memory_is_short(tmp_path: Path) -> None:
    async with world(tmp_path, has_memory=False) as it:
        await it.launch("first")
        second = await it.launch("second")

        assert (second / "cold").exists()
        assert it.waiting() == []


async def test_who_waits_too_long_is_let_go(tmp_path: Path) -> None:
    async with world(tmp_path, seconds=2) as it:
        await it.launch("first")
        await it.was_full(1)

        await it.is_full(0)

        assert it.waiting() == []
        assert list((tmp_path / ".warm").iterdir()) == []
        third = await it.launch("third")
        assert (third / "cold").exists()
        await it.was_full(2)


async def test_one_that_died_meanwhile_is_passed_over(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        await it.launch("first")
        await it.is_full(1)
        it.waiting()[0].kill()
        await until(lambda: it.waiting() == [])

        second = await it.launch("second")

        assert (second / "cold").exists()


async def test_closing_ends_who_waits_and_leaves_who_works(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        first = await it.launch("first")
        await it.is_full(1)

        await it.launcher.close()

        assert it.waiting() == []
        working = recall(first / AGENT_PID_FILE)
        assert working is not None
        assert is_alive(working)


async def test_who_waits_ends_when_the_server_is_killed(tmp_path: Path) -> None:
    program = tmp_path / "server.py"
    program.write_text(
        textwrap.dedent(
            f"""
            import asyncio, sys
            from pathlib import Path
            from headrace_server.launchers import warm_pool
            from tests.launchers.test_warm_pool import World

            async def main():
                warm_pool.REFILL_SECONDS = 0.01
                it = World(Path({str(tmp_path)!r}), size=1, seconds=60, has_memory=True)
                await it.launch("first")
                await it.is_full(1)
                print("waits", it.waiting()[0].pid, flush=True)
                await asyncio.sleep(600)

            asyncio.run(main())
            """
        ),
        encoding="utf-8",
    )
    server = await asyncio.create_subprocess_exec(
        sys.executable, str(program), stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}
    )
    assert server.stdout is not None
    while not (line := (await server.stdout.readline()).decode()).startswith("waits"):
        assert line, "it ended"
    waiting = psutil.Process(int(line.split()[1]))

    server.send_signal(signal.SIGKILL)
    await server.wait()

    await until(lambda: not is_alive(waiting))
    working = recall(tmp_path / "first" / AGENT_PID_FILE)
    assert working is not None
    working.kill()
