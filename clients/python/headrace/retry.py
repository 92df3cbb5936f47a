"""When a call is made again, and how long to wait before: pure arithmetic over an error and a clock.

Knows no connection.  What may be repeated at all is decided where the call is made.
"""

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import grpc

from headrace.errors import HeadraceError


class Clock(Protocol):
    """Where time comes from; tests bring their own."""

    def monotonic(self) -> float:
        """Seconds since some moment; never runs backwards."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Let that much time pass."""
        ...


class SystemClock:
    """The time of this machine."""

    def monotonic(self) -> float:
        """Seconds since some moment."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Wait without blocking the loop."""
        await asyncio.sleep(seconds)


_REPEATABLE = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED})
# What a broken connection, a proxy or a server that ends can say in the middle of a stream.
_RESUMABLE = _REPEATABLE | {
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
}


@dataclass(frozen=True, slots=True)
class Retry:
    """How patient a client is.  The server's own advice (RetryInfo) always wins over the doubling delay."""

    attempts: int = 5
    """Tries of one call, the first included; 1 turns repetition off."""
    first_delay_seconds: float = 0.1
    """Wait before the second try; doubles each time."""
    longest_delay_seconds: float = 5.0
    """The doubling stops here."""
    reconnect_seconds: float = 300.0
    """How long a broken stream is reopened with nothing new arriving before its error is raised."""
    silence_seconds: float = 60.0
    """A stream that says nothing this long, not even a heartbeat, counts as broken."""
    clock: Clock = field(default_factory=SystemClock)
    jitter: Callable[[], float] = random.random
    """A number from 0 to 1; spreads the callers of a server that comes back."""

    def wait_before_repeat(self, tries: int, error: HeadraceError) -> float | None:
        """Seconds to wait after `tries` failed tries of a call that is safe to repeat; None: give up."""
        if error.code not in _REPEATABLE or tries >= self.attempts:
            return None
        return self._delay(tries, error)

    def wait_before_resume(self, failures: int, error: HeadraceError) -> float | None:
        """Seconds to wait before a broken stream is opened again; None: reopening it cannot help.

        INTERNAL and UNKNOWN come from broken connections too; when the server itself says them, it gives a reason.
        """
        said_by_server = bool(error.reason) and error.code not in _REPEATABLE
        if error.code not in _RESUMABLE or said_by_server:
            return None
        return self._delay(failures, error)

    def _delay(self, failures: int, error: HeadraceError) -> float:
        if error.retry_after is not None:
            return max(0.0, error.retry_after.total_seconds())
        # At most 2**30, so that a patient caller's count of failures cannot overflow a float.
        doubled = self.first_delay_seconds * 2.0 ** min(failures - 1, 30)
        return min(doubled, self.longest_delay_seconds) * (0.5 + 0.5 * self.jitter())
