"""What is counted for one model version since the server has started, for those who ask the server itself.

The same moments feed the metrics; this keeps the sums that a histogram's buckets lose.
"""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from headrace_server.inference.prediction import Timing


@dataclass(frozen=True, slots=True)
class Runs:
    """Runs of a model on batches of one size."""

    num_runs: int = 0
    assemble_seconds: float = 0.0
    compute_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Statistics:
    """What was counted for one version."""

    num_answered: int = 0
    answered_seconds: float = 0.0
    """From admission to answer, of all answered calls."""
    answered_rows: int = 0
    num_failed: int = 0
    """Calls that failed, were shed, or whose callers left."""
    failed_seconds: float = 0.0
    queue_seconds: float = 0.0
    """Of answered calls; so are the next three, of which a call counts those of its whole batch."""
    assemble_seconds: float = 0.0
    compute_seconds: float = 0.0
    respond_seconds: float = 0.0
    last_call_at: float | None = None
    """When the last call ended, in seconds since 1970; None when there was none."""
    runs: Mapping[int, Runs] = field(default_factory=dict)
    """By rows."""


class Tally:
    """The counts of one version.  `ran` may be called from any thread, the others belong to the event loop."""

    def __init__(self) -> None:
        self._num_answered = self._answered_rows = self._num_failed = 0
        self._answered_seconds = self._failed_seconds = 0.0
        self._queue_seconds = self._assemble_seconds = self._compute_seconds = self._respond_seconds = 0.0
        self._last_call_at: float | None = None
        self._runs: dict[int, Runs] = {}  # as many as a batch may have rows
        self._lock = threading.Lock()

    def answered(self, timing: Timing, rows: int, seconds: float) -> None:
        """A call was answered, so long after it came."""
        self._num_answered += 1
        self._answered_rows += rows
        self._answered_seconds += seconds
        self._queue_seconds += timing.queue_seconds
        self._assemble_seconds += timing.assemble_seconds
        self._compute_seconds += timing.compute_seconds
        self._respond_seconds += timing.respond_seconds
        self._last_call_at = time.time()

    def failed(self, seconds: float) -> None:
        """A call ended otherwise, so long after it came."""
        self._num_failed += 1
        self._failed_seconds += seconds
        self._last_call_at = time.time()

    def ran(self, rows: int, assemble_seconds: float, compute_seconds: float) -> None:
        """A batch was computed."""
        with self._lock:
            past = self._runs.get(rows) or Runs()
            self._runs[rows] = Runs(
                past.num_runs + 1, past.assemble_seconds + assemble_seconds, past.compute_seconds + compute_seconds
            )

    def read(self) -> Statistics:
        """All of it, as it is now."""
        with self._lock:
            runs = dict(self._runs)
        return Statistics(
            num_answered=self._num_answered,
            answered_seconds=self._answered_seconds,
            answered_rows=self._answered_rows,
            num_failed=self._num_failed,
            failed_seconds=self._failed_seconds,
            queue_seconds=self._queue_seconds,
            assemble_seconds=self._assemble_seconds,
            compute_seconds=self._compute_seconds,
            respond_seconds=self._respond_seconds,
            last_call_at=self._last_call_at,
            runs=runs,
        )
