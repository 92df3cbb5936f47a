"""Frames of progress that are encoded once, however many readers follow a job.

Entries of a history never change, so a frame can be kept by the job and the sequence it belongs to.  Only the newest
stay.
"""

from google.protobuf.message import Message

DEFAULT_BYTES = 16 << 20


class Frames:
    """Encoded messages by key; the oldest leave when there are more than `limit_bytes`."""

    def __init__(self, limit_bytes: int = DEFAULT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._size_bytes = 0
        self._frames: dict[tuple[str, int], bytes] = {}

    def find(self, job: str, sequence: int) -> bytes | None:
        """The frame of one entry, if it is there."""
        return self._frames.get((job, sequence))

    def keep(self, job: str, sequence: int, message: Message) -> bytes:
        """Encode the frame of one entry and keep it; returns it."""
        frame = message.SerializeToString()
        self._size_bytes += len(frame) - len(self._frames.pop((job, sequence), b""))
        self._frames[job, sequence] = frame
        while self._size_bytes > self._limit_bytes and len(self._frames) > 1:
            oldest = next(iter(self._frames))
            self._size_bytes -= len(self._frames.pop(oldest))
        return frame

    @property
    def size_bytes(self) -> int:
        """What is kept."""
        return self._size_bytes
