"""Optimised copies of ONNX programs, so that a version that comes back is opened sooner.

To read a program, to optimise it and to put its weights where they are needed takes a core for a tenth of a second and
90 MB of weights, half of it in the kernel.  A copy is optimised already, and its weights are mapped.  It is made behind
the first load, by a process that gives way to everybody (`copying.py`), and kept as long as this process lives, within
a bound.  Belongs to the event loop.
"""

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import sys
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from headrace_server.inference.backends.onnxruntime import Copy
from headrace_server.inference.copying import PROGRAM_FILE
from headrace_server.inference.errands import Errands
from headrace_server.inference.programs import Program
from headrace_server.launchers.process import clean_environment

LEAST_BYTES = 8 << 20
"""A smaller program is opened in no time as it is."""
MOST_REFUSED = 1024
SECONDS = 120.0
_TIMES_ITS_SIZE = 4
"""The memory that it takes to copy a program: two of it, and what the runtime does on the way."""
COPY_COMMAND = (sys.executable, "-P", "-m", "headrace_server.inference.copying")

log = structlog.get_logger()


class Copies:
    """The copies of one server, the least recently used first."""

    def __init__(
        self,
        folder: Path,
        most_bytes: int,
        errands: Errands,
        free_bytes: Callable[[], int],
        command: Sequence[str] = COPY_COMMAND,
    ) -> None:
        """They take `most_bytes` of disk at most; 0: none is made.  `free_bytes` says what the memory has left; blocks.

        `command` makes a copy; it gets the program and the folder.
        """
        self._folder = folder
        self._most_bytes = most_bytes
        self._errands = errands
        self._free_bytes = free_bytes
        self._command = tuple(command)
        self._turn = asyncio.Lock()
        """One at a time: each takes the memory of the program twice."""
        self._copies: OrderedDict[str, tuple[Path, int]] = OrderedDict()
        self._refused: OrderedDict[str, None] = OrderedDict()
        self._under_way: set[str] = set()
        self._lost: set[str] = set()
        """Those that could not be opened; lanes add to it."""

    def find(self, digest: str) -> Copy | None:
        """The copy of the program with this digest."""
        if digest not in self._copies:
            return None
        if digest in self._lost:
            self._lost.discard(digest)
            self._refuse(digest)
            path, _ = self._copies.pop(digest)
            self._errands.start(asyncio.to_thread(shutil.rmtree, path.parent, ignore_errors=True))
            return None
        self._copies.move_to_end(digest)
        return Copy(self._copies[digest][0], lambda: self._lost.add(digest))

    def make(self, program: Program) -> None:
        """Make a copy in the background, of a program that is open; harmless when there is one, or can be none."""
        digest = program.digest
        if self._most_bytes and not (digest in self._copies or digest in self._refused or digest in self._under_way):
            self._under_way.add(digest)
            self._errands.start(self._make(program))

    async def _make(self, program: Program) -> None:
        folder = self._folder / secrets.token_hex(16)
        try:
            async with self._turn:
                size_bytes = (await asyncio.to_thread(program.path.stat)).st_size
                if not LEAST_BYTES <= size_bytes <= self._most_bytes:
                    self._refuse(program.digest)
                    return
                if await asyncio.to_thread(self._free_bytes) < _TIMES_ITS_SIZE * size_bytes:
                    return  # there may be, when it is loaded again
                await asyncio.to_thread(folder.mkdir, parents=True)
                problem = await self._run(program.path, folder)
                if not problem:
                    self._copies[program.digest] = folder / PROGRAM_FILE, await asyncio.to_thread(_size_of, folder)
                    await self._keep_bound()
        except OSError as error:
            problem = str(error)
        finally:
            self._under_way.discard(program.digest)
            if program.digest not in self._copies:
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        has_left = not await asyncio.to_thread(program.path.exists)
        if problem and not has_left:
            log.warning("inference.not_copied", program=program.digest, problem=problem)
            self._refuse(program.digest)

    async def _run(self, program: Path, folder: Path) -> str:
        """Make a copy; why there is none, or nothing."""
        process = await asyncio.create_subprocess_exec(
            *self._command,
            str(program),
            str(folder),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env=clean_environment(os.environ),
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(SECONDS):
                _, words = await process.communicate()
        except TimeoutError:
            return f"it took more than {SECONDS:g} seconds"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        if process.returncode == 0:
            return ""
        last = words.decode(errors="replace").strip().rpartition("\n")[2]
        return f"{last[:300]} (exit code {process.returncode})"

    async def _keep_bound(self) -> None:
        """Remove the least recently used ones that are too many; what is open of them stays mapped."""
        while sum(nbytes for _, nbytes in self._copies.values()) > self._most_bytes:
            _, (path, _) = self._copies.popitem(last=False)
            await asyncio.to_thread(shutil.rmtree, path.parent, ignore_errors=True)

    def _refuse(self, digest: str) -> None:
        self._refused[digest] = None
        if len(self._refused) > MOST_REFUSED:
            self._refused.popitem(last=False)


def _size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())
