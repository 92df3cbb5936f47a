"""Time on the wall, and of the processor.  Peers import it in environments of their own."""

import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Clock:
    """Seconds on the wall, and of processor time of this process, all threads included."""

    wall: float
    processor: float

    @classmethod
    def now(cls) -> "Clock":
        """As of now."""
        return cls(time.perf_counter(), time.process_time())

    def each_of(self, num_steps: int) -> "Clock":
        """What each of the steps since then took."""
        now = Clock.now()
        return Clock((now.wall - self.wall) / num_steps, (now.processor - self.processor) / num_steps)
