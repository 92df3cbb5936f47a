"""Agents that were started ahead of their jobs, each with a trainer that has loaded everything and waits.

There are none before the first launch, and none a while after the last one: what nobody uses is not paid for.  Their
number is bounded, and so is the memory that they may find.  An agent that waits ends by itself when this process is
gone, because its standard input is; once it has a job it is like any other.
"""

import asyncio
import contextlib
import itertools
import os
import shutil
import subprocess
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import structlog

from headrace_server.launchers.processes import AGENT_PID_FILE, adopt_mark, record

WAIT = "--wait"
"""What an agent is started with that is to wait; its folder follows."""
LOG_FILE = "agent.log"
REFILL_SECONDS = 3.0
"""How long after a launch the place in the pool is filled again: loading would slow the job's own beginning down."""
FAREWELL_SECONDS = 5.0
STALE_SECONDS = 3600.0
"""Nothing waits so long without its folder being changed, and then still begins there."""

ProcessT = TypeVar("ProcessT", bound="subprocess.Popen[bytes]")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Warmth:
    """How many agents wait, for how long, and where."""

    folder: Path
    """Each has a folder of its own below it."""
    size: int
    seconds: float
    """How long after the last launch they are kept."""
    has_memory: Callable[[], bool]
    """Whether there is memory for one more.  Called from a thread."""
    tell: Callable[[int], object] = lambda _: None
    """Told how many there are."""


class WarmPool(Generic[ProcessT]):
    """See the module.  `spawn` starts an agent that waits, given its folder; it is called in a thread."""

    def __init__(self, warmth: Warmth, spawn: Callable[[Path], ProcessT], watch: Callable[[ProcessT], None]) -> None:
        self._warmth = warmth
        self._spawn = spawn
        self._watch = watch
        self._numbers = itertools.count(1)
        self._waiting: deque[tuple[ProcessT, Path]] = deque()
        self._keeping: asyncio.Task[None] | None = None
        self._used_at = 0.0
        self._bell = asyncio.Event()

    async def take(self, folder: Path) -> ProcessT | None:
        """Give the attempt in `folder` to an agent that waits; None when there is none.  Counts as a use either way."""
        self._note_use()
        while self._waiting:
            process, slot = self._waiting.popleft()
            self._warmth.tell(len(self._waiting))
            handing = asyncio.ensure_future(asyncio.to_thread(_hand_over, process, slot, folder))
            try:
                is_taken = await asyncio.shield(handing)
            except asyncio.CancelledError:
                await asyncio.wait([handing])  # it belongs to the attempt, where `kill` finds it
                raise
            if is_taken:
                return process
        return None

    async def close(self) -> None:
        """End all who wait.  Harmless when repeated."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait([self._keeping])
        await self._end_all()

    def _note_use(self) -> None:
        self._used_at = asyncio.get_running_loop().time()
        self._bell.set()
        if self._keeping is None or self._keeping.done():
            self._keeping = asyncio.ensure_future(self._keep())

    async def _keep(self) -> None:
        """Keep the pool full until it has not been used for long."""
        loop = asyncio.get_running_loop()
        await asyncio.to_thread(_sweep, self._warmth.folder)
        while (left := self._used_at + self._warmth.seconds - loop.time()) > 0:
            self._bell.clear()
            await asyncio.sleep(min(REFILL_SECONDS, left))
            await self._drop_dead()
            while len(self._waiting) < self._warmth.size and await asyncio.to_thread(self._warmth.has_memory):
                if not await self._add():
                    break
            left = self._used_at + self._warmth.seconds - loop.time()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, left)):
                    await self._bell.wait()
        await self._end_all()

    async def _add(self) -> bool:
        slot = self._warmth.folder / f"{os.getpid()}-{next(self._numbers)}"
        starting = asyncio.ensure_future(asyncio.to_thread(self._spawn, slot))
        try:
            process = await asyncio.shield(starting)
        except asyncio.CancelledError:
            await asyncio.wait([starting])
            if not starting.cancelled() and starting.exception() is None:
                self._waiting.append((starting.result(), slot))  # for who closes the pool
                self._watch(starting.result())
            raise
        except OSError as error:
            log.warning("launcher.not_warmed", error=str(error))
            return False
        self._watch(process)
        self._waiting.append((process, slot))
        self._warmth.tell(len(self._waiting))
        log.info("launcher.agent_warmed", pid=process.pid)
        return True

    async def _drop_dead(self) -> None:
        dead = [(process, slot) for process, slot in self._waiting if process.poll() is not None]
        self._waiting = deque(each for each in self._waiting if each not in dead)
        for process, slot in dead:
            await asyncio.to_thread(_end, process, slot)

    async def _end_all(self) -> None:
        waiting, self._waiting = self._waiting, deque()
        await asyncio.gather(*(asyncio.to_thread(_end, process, slot) for process, slot in waiting))
        self._warmth.tell(0)


def _hand_over(process: "subprocess.Popen[bytes]", slot: Path, folder: Path) -> bool:
    """Make a waiting agent the agent of an attempt; whether it still was there.

    The folder that it waited in is its own to remove: it may still be about to begin there.
    """
    folder = folder.resolve()
    assert process.stdin is not None
    try:
        record(folder / AGENT_PID_FILE, process.pid)
        adopt_mark(folder, str(slot.resolve()))
        (slot / LOG_FILE).replace(folder / LOG_FILE)
        process.stdin.write(f"{folder}\n".encode())
    except OSError:
        return False
    finally:
        _hang_up(process)
    return process.poll() is None


def _end(process: "subprocess.Popen[bytes]", slot: Path) -> None:
    """Let a waiting agent end, which takes its trainer along; by force when it does not."""
    _hang_up(process)
    try:
        process.wait(FAREWELL_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    shutil.rmtree(slot, ignore_errors=True)


def _hang_up(process: "subprocess.Popen[bytes]") -> None:
    """Close the line to an agent, whatever was said over it."""
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.close()


def _sweep(folder: Path) -> None:
    """Remove what agents of earlier servers have left that were killed."""
    with contextlib.suppress(OSError):
        for slot in folder.iterdir():
            if slot.stat().st_mtime < time.time() - STALE_SECONDS:
                shutil.rmtree(slot, ignore_errors=True)
