"""Files read and written in blocks, in threads, by callers who may leave at any moment.

Disk work runs in the bounded threads that asyncio keeps.  A cancelled call ends when the thread that works for it has
let go of the file.
"""

import asyncio
import errno
import os
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path
from typing import BinaryIO, TypeVar

from headrace_server.storage.atomic_file import AtomicFile

BLOCK_BYTES = 1 << 20

T = TypeVar("T")


async def read_file(
    path: Path, block_bytes: int = BLOCK_BYTES, open_file: Callable[[Path], BinaryIO] | None = None
) -> AsyncGenerator[bytes, None]:
    """Yield the bytes that a file has when it is opened, which is at the first step.

    Raises OSError if it turns out to be shorter.  `open_file` opens it without a buffer; the default follows links.
    """
    reader = _Reader(path, open_file or _open)
    try:
        while block := await asyncio.to_thread(reader.next, block_bytes):
            yield block
    finally:
        await run_to_the_end(reader.close)


async def write_file(
    file: AtomicFile, chunks: AsyncIterator[bytes], mode: int = 0o444, *, is_durable: bool = True
) -> tuple[int, str]:
    """Write and publish what `chunks` yields; returns size in bytes and digest.

    Nothing is left behind when `chunks` raises, the disk is full, or the call is cancelled.
    """
    waiting: list[bytes] = []
    waiting_bytes = 0
    try:
        async for chunk in chunks:
            waiting.append(chunk)
            waiting_bytes += len(chunk)
            if waiting_bytes >= BLOCK_BYTES:
                await asyncio.to_thread(file.write, waiting)
                waiting, waiting_bytes = [], 0
        await asyncio.to_thread(file.write, waiting)
        return await asyncio.to_thread(file.publish, mode, is_durable=is_durable)
    finally:
        await run_to_the_end(file.discard)


async def run_to_the_end(act: Callable[[], T]) -> T:
    """Run `act` in a thread.  A cancellation of the caller neither keeps it from beginning nor from ending."""
    return await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, act))


class _Reader:
    """Reads one file in threads.  The lock keeps `close` away from a read whose caller has gone."""

    def __init__(self, path: Path, open_file: Callable[[Path], BinaryIO]) -> None:
        self._path = path
        self._open_file = open_file
        self._lock = threading.Lock()
        self._file: BinaryIO | None = None
        self._is_closed = False
        self._left_bytes = 0

    def next(self, num_bytes: int) -> bytes:
        """The next bytes; none at the end."""
        with self._lock:
            if self._is_closed:
                raise RuntimeError(f"{self._path} is no longer being read")
            if self._file is None:
                self._file = self._open_file(self._path)
                self._left_bytes = os.fstat(self._file.fileno()).st_size
            block = self._file.read(min(num_bytes, self._left_bytes))
            self._left_bytes -= len(block)
            if not block and self._left_bytes:
                raise OSError(errno.EIO, f"ended {self._left_bytes} bytes too early", str(self._path))
            return block

    def close(self) -> None:
        """Give the file back; waits for a read under way."""
        with self._lock:
            self._is_closed = True
            if self._file is not None:
                self._file.close()


def _open(path: Path) -> BinaryIO:
    return path.open("rb", buffering=0)
