"""Tries again what the world refused, for as long as it is worth it.  Knows nothing of what is tried."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import structlog

from headrace_server.errors import StorageFull

T = TypeVar("T")

REFUSALS = (OSError, StorageFull)
"""What a store raises when it may do better later."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Persistence:
    """How long to try, in seconds."""

    total_seconds: float = 600.0
    first_wait_seconds: float = 0.2
    longest_wait_seconds: float = 5.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep

    async def insist(
        self, what: str, act: Callable[[], Awaitable[T]], on_refusal: Callable[[str], Awaitable[None]]
    ) -> T:
        """Await `act()` until it succeeds; `on_refusal` is told of each failure.  Raises its last refusal."""
        deadline = self.clock() + self.total_seconds
        wait_seconds = self.first_wait_seconds
        while True:
            try:
                return await act()
            except REFUSALS as error:
                log.warning("store.refused", what=what, error=str(error))
                if self.clock() + wait_seconds > deadline:
                    raise
                await on_refusal(f"{what}: {error}")
            await self.sleep(wait_seconds * random.uniform(0.5, 1))  # noqa: S311
            wait_seconds = min(2 * wait_seconds, self.longest_wait_seconds)
