"""A numbered queue of records that waits on disk until each is acknowledged.

Knows nothing of what the records mean, nor of who sends them.  Records are numbered from 1 without gaps and read again
as often as needed, from any number that is not acknowledged yet.  They lie in segments of about `segment_bytes`, each a
file of (CRC-32, length, content); a segment whose records are all acknowledged is removed.

Nothing is ever synced: the spool has to outlive servers, not its own process (whose death ends the attempt) and not the
machine.  Where the disk refuses a write, new segments live in memory until the disk takes them again; `memory_bytes`
says how much that is, and whoever appends keeps it within bounds.

Blocks: every method is meant for a thread.  One lock makes them safe from several.
"""

import os
import shutil
import struct
import threading
import time
import zlib
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog

SEGMENT_BYTES = 1 << 20
RETRY_SECONDS = 1.0
_HEADER = struct.Struct("<II")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Record:
    """One entry of the queue."""

    number: int
    content: bytes | None
    """None where the disk no longer holds what was written."""


@dataclass(slots=True)
class _Segment:
    """Consecutive records in one file, or in memory where `path` is None."""

    first: int
    path: Path | None
    starts: "array[int]" = field(default_factory=lambda: array("Q"))
    """Where each record begins in the file."""
    end: int = 0
    contents: list[bytes] = field(default_factory=list)
    """Only of a segment in memory."""

    @property
    def last(self) -> int:
        return self.first + (len(self.starts) if self.path else len(self.contents)) - 1

    def end_of(self, number: int) -> int:
        """Where a record ends in the file."""
        index = number - self.first
        return self.starts[index + 1] if index + 1 < len(self.starts) else self.end

    def size_of(self, number: int) -> int:
        """The size of a record's content."""
        if self.path is None:
            return len(self.contents[number - self.first])
        return self.end_of(number) - self.starts[number - self.first] - _HEADER.size


class Spool:
    """See the module.  `folder` belongs to the spool and is emptied at its start."""

    def __init__(
        self, folder: Path, segment_bytes: int = SEGMENT_BYTES, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder = folder
        self._segment_bytes = segment_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._segments: deque[_Segment] = deque()
        self._descriptor: int | None = None  # of the newest segment, while that is a file
        self._retry_at = 0.0
        self.last = 0
        """The number of the newest record; 0 before the first."""
        self.acknowledged = 0
        """Records up to this number are gone."""
        self.unacknowledged_bytes = 0
        """The size of all records that wait."""
        self.memory_bytes = 0
        """The share of it that is held in memory."""
        self.disk_problem = ""
        """Why records go to memory at present; empty while they go to disk."""

    def open(self) -> None:
        """Make an empty folder.  A disk that refuses even that is survived as any later refusal."""
        with self._lock:
            shutil.rmtree(self._folder, ignore_errors=True)
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                self._turn_to_memory(error)

    def append(self, contents: Sequence[bytes]) -> None:
        """Add records at the end, numbered on from `last`."""
        with self._lock:
            position = 0
            while position < len(contents):
                position += self._append_some(contents, position)

    def read(self, after: int, limit_bytes: int = SEGMENT_BYTES) -> list[Record]:
        """The records that follow number `after`: at least one if there is any, and no more than about `limit_bytes`.

        What is acknowledged is skipped.
        """
        with self._lock:
            number = max(after, self.acknowledged) + 1
            segment = next((segment for segment in self._segments if segment.last >= number), None)
            if segment is None:
                return []
            if segment.path is None:
                return _take(segment, number, limit_bytes)
            return _load(segment, segment.path, number, limit_bytes)

    def acknowledge(self, up_to: int) -> None:
        """Forget the records up to a number.  Numbers that were acknowledged before, or never given, are harmless."""
        with self._lock:
            up_to = min(up_to, self.last)
            for segment in self._segments:
                for number in range(max(segment.first, self.acknowledged + 1), min(segment.last, up_to) + 1):
                    self._forget(segment, number)
            self.acknowledged = max(self.acknowledged, up_to)
            while self._segments and self._segments[0].last <= self.acknowledged:
                if len(self._segments) == 1 and self._descriptor is not None:
                    self._rewind(self._segments[0])
                    return
                self._remove(self._segments.popleft())

    def close(self) -> None:
        """Remove the folder and forget everything."""
        with self._lock:
            self._close_newest()
            self._segments.clear()
            self.acknowledged = self.last
            self.unacknowledged_bytes = self.memory_bytes = 0
            shutil.rmtree(self._folder, ignore_errors=True)

    def _append_some(self, contents: Sequence[bytes], position: int) -> int:
        """Append one or more records to one segment; returns how many."""
        segment = self._segment_for_append()
        if segment.path is None:
            segment.contents.append(contents[position])
            self.memory_bytes += len(contents[position])
            self._count(contents[position : position + 1])
            return 1
        starts, block = array("Q"), bytearray()
        while position < len(contents) and segment.end + len(block) < self._segment_bytes:
            starts.append(segment.end + len(block))
            content = contents[position]
            block += _HEADER.pack(zlib.crc32(content), len(content)) + content
            position += 1
        try:
            self._write(block, segment.end)
        except OSError as error:
            self._close_newest()
            self._turn_to_memory(error)
            return 0
        segment.starts.extend(starts)
        segment.end += len(block)
        self._count(contents[position - len(starts) : position])
        return len(starts)

    def _segment_for_append(self) -> _Segment:
        newest = self._segments[-1] if self._segments else None
        if newest is not None and newest.path is not None and self._descriptor is not None:
            if newest.end < self._segment_bytes:
                return newest
            self._close_newest()
        if self.disk_problem and self._clock() < self._retry_at:
            return self._memory_segment()
        try:
            return self._new_file()
        except OSError as error:
            self._turn_to_memory(error)
            return self._memory_segment()

    def _memory_segment(self) -> _Segment:
        newest = self._segments[-1] if self._segments else None
        if newest is None or newest.path is not None or len(newest.contents) >= 1000:
            newest = _Segment(self.last + 1, None)
            self._segments.append(newest)
        return newest

    def _new_file(self) -> _Segment:
        path = self._folder / f"{self.last + 1:019}.records"
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        segment = _Segment(self.last + 1, path)
        self._segments.append(segment)
        return segment

    def _write(self, block: bytes | bytearray, offset: int) -> None:
        assert self._descriptor is not None
        rest = memoryview(block)
        while rest:
            num_written = os.pwrite(self._descriptor, rest, offset)
            rest, offset = rest[num_written:], offset + num_written
        if self.disk_problem:
            log.info("spool.disk_back", records=self.last)
            self.disk_problem = ""

    def _turn_to_memory(self, error: OSError) -> None:
        if not self.disk_problem:
            log.warning("spool.disk_refused", error=str(error))
        self.disk_problem = error.strerror or str(error)
        self._retry_at = self._clock() + RETRY_SECONDS
        # A file that took no record at all is no segment.
        if self._segments and self._segments[-1].last < self._segments[-1].first:
            self._remove(self._segments.pop())

    def _count(self, contents: Sequence[bytes]) -> None:
        self.last += len(contents)
        self.unacknowledged_bytes += sum(map(len, contents))

    def _forget(self, segment: _Segment, number: int) -> None:
        size_bytes = segment.size_of(number)
        self.unacknowledged_bytes -= size_bytes
        if segment.path is None:
            self.memory_bytes -= size_bytes
            segment.contents[number - segment.first] = b""

    def _rewind(self, segment: _Segment) -> None:
        """Use the newest file again from its beginning: cheaper than a new file for each report."""
        segment.first, segment.end, segment.starts = self.last + 1, 0, array("Q")

    def _remove(self, segment: _Segment) -> None:
        if segment.path is None:
            return
        try:
            segment.path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("spool.not_removed", path=segment.path.name, error=str(error))

    def _close_newest(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _take(segment: _Segment, number: int, limit_bytes: int) -> list[Record]:
    records: list[Record] = []
    size_bytes = 0
    for index in range(number - segment.first, len(segment.contents)):
        if records and size_bytes + len(segment.contents[index]) > limit_bytes:
            break
        records.append(Record(segment.first + index, segment.contents[index]))
        size_bytes += len(segment.contents[index])
    return records


def _load(segment: _Segment, path: Path, number: int, limit_bytes: int) -> list[Record]:
    """Read records from a file.  What was damaged or taken away comes back as None under its number."""
    begin = segment.starts[number - segment.first]
    until = number
    while until < segment.last and segment.end_of(until + 1) - begin <= limit_bytes:
        until += 1
    end = segment.end_of(until)
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(begin)
            block = _read_fully(file.fileno(), end - begin)
    except OSError as error:
        log.warning("spool.unreadable", path=path.name, error=str(error))
        block = b""
    records = []
    for each in range(number, until + 1):
        written = block[segment.starts[each - segment.first] - begin : segment.end_of(each) - begin]
        records.append(Record(each, _check(written, segment.size_of(each))))
    return records


def _read_fully(descriptor: int, num_bytes: int) -> bytes:
    pieces = []
    while num_bytes and (piece := os.read(descriptor, num_bytes)):
        pieces.append(piece)
        num_bytes -= len(piece)
    return b"".join(pieces)


def _check(block: bytes, size_bytes: int) -> bytes | None:
    if len(block) != _HEADER.size + size_bytes:
        return None
    checksum, length = _HEADER.unpack_from(block)
    content = block[_HEADER.size :]
    return content if length == size_bytes and zlib.crc32(content) == checksum else None
