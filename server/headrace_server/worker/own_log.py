"""Keeps the agent's own log short, and keeps it from doing harm.

The file is whatever standard error was opened as, for appending.
"""

import contextlib
import io
import os
import stat
from typing import TextIO

LARGEST_BYTES = 4 << 20
KEPT_BYTES = 1 << 20


def shorten(descriptor: int, largest_bytes: int = LARGEST_BYTES, kept_bytes: int = KEPT_BYTES) -> bool:
    """Cut a file that has grown too large down to its newest part; returns whether it was.

    Anything but a regular file is left alone.  Lines that are written at this very moment may be lost.  Blocks.
    """
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_size <= largest_bytes:
        return False
    # The descriptor is open for writing only.
    reading = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        tail = os.pread(reading, kept_bytes, status.st_size - kept_bytes)
    finally:
        os.close(reading)
    os.ftruncate(descriptor, 0)
    os.write(descriptor, tail[tail.find(b"\n") + 1 :])
    return True


class LossyText(io.TextIOBase):
    """Text that is written if it can be: an agent must not end because there is no room for its log."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, or lose."""
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, or lose."""
        with contextlib.suppress(OSError):
            self._stream.flush()
