"""Cuts a stream of bytes into lines without ever holding more than one line's limit.

Knows nothing of what the lines say.  A line that is too long is cut; the rest of it, up to its end, is dropped.
"""

from collections.abc import Iterator


class LineCutter:
    """Feed it bytes as they come; it yields whole lines without their ends."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._part = bytearray()
        self.is_cut = False
        """Whether the line that was yielded last, or is being gathered, was longer than the limit."""

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield the lines that `chunk` completes."""
        *whole, rest = chunk.split(b"\n")
        for piece in whole:
            self._gather(piece)
            yield self._finish()
        self._gather(rest)

    def end(self) -> bytes | None:
        """The last line, if the stream ended in the middle of it."""
        return self._finish() if self._part else None

    def _gather(self, piece: bytes) -> None:
        if not self._part:
            self.is_cut = False
        room = self._limit_bytes - len(self._part)
        if len(piece) > room:
            self.is_cut = True
            piece = piece[:room]
        self._part += piece

    def _finish(self) -> bytes:
        line = bytes(self._part)
        self._part.clear()
        return line
