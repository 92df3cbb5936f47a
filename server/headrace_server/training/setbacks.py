"""How long to wait before something is tried again that went wrong.  Knows nothing of what is tried."""

import time
from collections.abc import Callable

LONGEST_PAUSE_SECONDS = 30.0


class Setbacks:
    """What went wrong in a row.  The wait doubles with each."""

    def __init__(self, first_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._first_seconds = first_seconds
        self._num = 0
        self._clock = clock
        self._begun_at = 0.0

    @property
    def lasting_seconds(self) -> float:
        """For how long things have gone wrong; 0 when all is well."""
        return 0.0 if self._num == 0 else self._clock() - self._begun_at

    def note(self) -> None:
        """Something went wrong again."""
        if self._num == 0:
            self._begun_at = self._clock()
        self._num += 1

    def forget(self) -> None:
        """All is well."""
        self._num = 0

    def delay_seconds(self, restarts: int = 0) -> float:
        """How long to wait; 0 when nothing went wrong.  `restarts` are setbacks that somebody else has counted."""
        num = max(restarts, self._num)
        return 0.0 if num == 0 else min(LONGEST_PAUSE_SECONDS, self._first_seconds * 2.0 ** min(num - 1, 16))
