"""What a trainer writes on standard output and error, on its way to the job's log.

Knows lines, knows no trainer.  A trainer that floods its output is neither held up nor passed on in full: its pipes are
always read, its last lines are always kept as evidence, and what exceeds `Rate` is left out of the log, with a line
that says how many were.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from headrace_server.training.events import LogLine, LogSource
from headrace_server.worker.lines import LineCutter
from headrace_server.worker.outbox import LONGEST_TEXT, Outbox

NUM_LAST_LINES = 100
TELL_SECONDS = 10.0
LONGEST_EVIDENCE = 1000
"""Characters kept of each of the last lines."""

# A character takes at most four bytes.
_LONGEST_BYTES = 4 * LONGEST_TEXT


@dataclass(frozen=True, slots=True)
class Rate:
    """How many lines may go to the log."""

    burst: int = 1000
    lines_per_second: float = 100.0


class Output:
    """Both streams of a trainer; of all ranks, where several train together."""

    def __init__(self, outbox: Outbox, rate: Rate | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._outbox = outbox
        self._rate = rate or Rate()
        self._clock = clock
        self._allowance = float(self._rate.burst)
        self._allowed_at = clock()
        self._waiting: list[LogLine] = []  # at most two bursts
        self._num_left_out = 0
        self._told_at = -TELL_SECONDS
        self._last: deque[str] = deque(maxlen=NUM_LAST_LINES)
        self._bell = asyncio.Event()
        self._num_open = 0

    @property
    def last_lines(self) -> tuple[str, ...]:
        """The newest lines of both streams, each cut at `LONGEST_EVIDENCE` characters."""
        return tuple(self._last)

    def remember(self, text: str) -> None:
        """Put a line of the agent's own among the evidence."""
        self._last.append(text[:LONGEST_EVIDENCE])

    def stream(self, source: LogSource, prefix: str = "") -> asyncio.Protocol:
        """The reading end of one of the streams; each of its lines begins with `prefix`."""
        self._num_open += 1
        return _Stream(self, source, prefix.encode())

    async def pump(self) -> None:
        """Carry lines to the outbox until all streams have ended."""
        while True:
            await self._bell.wait()
            self._bell.clear()
            is_over = self._num_open == 0
            await self._outbox.add(self._take())
            if is_over:
                return

    def write(self, source: LogSource, lines: Sequence[bytes]) -> None:
        """Take lines.  Only those that are used are decoded, so that a flood costs little."""
        num_allowed = min(self._allowed(), len(lines))
        self._allowance -= num_allowed
        self._num_left_out += len(lines) - num_allowed
        self._waiting += [LogLine(source=source, text=_as_text(line)) for line in lines[:num_allowed]]
        self._last.extend(_as_text(line)[:LONGEST_EVIDENCE] for line in lines[-NUM_LAST_LINES:])
        self._bell.set()

    def end_stream(self) -> None:
        """One of the streams has ended."""
        self._num_open -= 1
        self._bell.set()

    def _allowed(self) -> int:
        """How many lines may go to the log now."""
        now = self._clock()
        gained = (now - self._allowed_at) * self._rate.lines_per_second
        self._allowance = min(float(self._rate.burst), self._allowance + gained)
        self._allowed_at = now
        return max(0, min(int(self._allowance), 2 * self._rate.burst - len(self._waiting)))

    def _take(self) -> Sequence[LogLine]:
        waiting, self._waiting = self._waiting, []
        # Told now and then, and at the end: a flood must not become a flood of such lines.
        is_due = self._num_open == 0 or self._clock() - self._told_at >= TELL_SECONDS
        if self._num_left_out and is_due:
            text = f"{self._num_left_out} lines were left out: the trainer writes faster than the log takes"
            waiting.append(LogLine(source=LogSource.WORKER, text=text))
            self._num_left_out = 0
            self._told_at = self._clock()
        return waiting


class _Stream(asyncio.Protocol):
    def __init__(self, output: Output, source: LogSource, prefix: bytes) -> None:
        self._output = output
        self._source = source
        self._prefix = prefix
        self._cutter = LineCutter(_LONGEST_BYTES)

    def data_received(self, data: bytes) -> None:
        self._output.write(self._source, [self._prefix + line for line in self._cutter.feed(data)])

    def connection_lost(self, error: Exception | None) -> None:
        rest = self._cutter.end()
        if rest is not None:
            self._output.write(self._source, [self._prefix + rest])
        self._output.end_stream()


def _as_text(line: bytes) -> str:
    """What a terminal would show in the end: progress bars return to the line's beginning and write over it."""
    text = line.decode(errors="replace").rstrip("\r")
    # A NUL cannot be stored as text in every database.
    return text.rpartition("\r")[2].replace("\0", "\N{REPLACEMENT CHARACTER}")[:LONGEST_TEXT]
