"""How long a worker may be silent before it is given up.

Time in which this process itself did not run (stopped, starved, asleep) does not count: signs of life that arrived
meanwhile are still unread, and a worker must not be blamed for its server's pause.
"""

from collections.abc import Callable


class Lease:
    """The time until a worker is given up; every sign of life begins it anew."""

    def __init__(self, seconds: float, first_seconds: float, clock: Callable[[], float]) -> None:
        """`first_seconds` is the allowance until the first sign of life, `seconds` the one after each."""
        self.seconds = seconds
        self._clock = clock
        self._looked_at = clock()
        self._ends_at = self._looked_at + first_seconds

    @property
    def tick_seconds(self) -> float:
        """How often `seconds_left` must be asked for, so that a pause of this process is noticed."""
        return self.seconds / 8

    def renew(self) -> None:
        """The worker gave a sign of life."""
        self._ends_at = self._clock() + self.seconds

    def seconds_left(self) -> float:
        """What is left; 0 or less once the lease has run out."""
        now = self._clock()
        paused = now - self._looked_at - 2 * self.tick_seconds
        if paused > 0:
            self._ends_at += paused
        self._looked_at = now
        return self._ends_at - now
