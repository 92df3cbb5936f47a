"""How fast a model has lately been, to tell callers early what cannot be done in time.

Knows nothing of clocks: it is told how long runs took.  Estimates are only ever used to refuse, and never to refuse
when a lane is idle, so that one slow run cannot shut a model for good.
"""

from collections import deque
from statistics import median_low

REMEMBERED_RUNS = 16
LONGEST_RETRY_SECONDS = 30.0
UNKNOWN_RETRY_SECONDS = 0.1


class Pace:
    """The last few runs of one model."""

    def __init__(self) -> None:
        self._runs: deque[float] = deque(maxlen=REMEMBERED_RUNS)
        self._rows: deque[float] = deque(maxlen=REMEMBERED_RUNS)
        self._run_seconds = 0.0
        self._seconds_per_row = 0.0

    def observe(self, rows: int, seconds: float) -> None:
        """Remember one run."""
        self._runs.append(seconds)
        self._rows.append(seconds / rows)
        # The lower median: one slow run, such as the first, is forgotten with the next.
        self._run_seconds = median_low(self._runs)
        self._seconds_per_row = median_low(self._rows)

    @property
    def run_seconds(self) -> float:
        """The median of the last runs; 0 while nothing is known."""
        return self._run_seconds

    def seconds_until_done(self, rows_ahead: int, num_lanes: int) -> float:
        """How long a call would take that arrives behind this many rows; 0 while nothing is known."""
        return rows_ahead * self._seconds_per_row / num_lanes + self._run_seconds

    def retry_seconds(self, waiting_rows: int, num_lanes: int) -> float:
        """When it is worth to ask again, with this many rows waiting now."""
        if not self._runs:
            return UNKNOWN_RETRY_SECONDS
        return min(max(self.seconds_until_done(waiting_rows, num_lanes), 0.001), LONGEST_RETRY_SECONDS)
