"""What the agent was told about ending: by the server, by the system, or by having had no server for too long."""

import asyncio
import math
import time
from collections.abc import Callable

import structlog

from headrace_server.training.session import StopWorker

log = structlog.get_logger()


class Orders:
    """The strictest order so far.  A later one can only shorten what an earlier one allows."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.bell = asyncio.Event()
        """Replaced at each ring; take it before looking."""
        self.is_given = False
        self.is_kill = False
        self.deadline = math.inf
        """When the trainer must be gone, on the clock."""

    def give(self, stop: StopWorker) -> None:
        """Order the trainer's end."""
        self.is_given = True
        self.is_kill = self.is_kill or stop.kill
        grace_seconds = 0.0 if stop.kill else max(0.0, stop.grace_seconds)
        self.deadline = min(self.deadline, self._clock() + grace_seconds)
        log.info("orders.stop", kill=stop.kill, grace_seconds=stop.grace_seconds)
        self.ring()

    def ring(self) -> None:
        """Wake whoever waits for the bell."""
        self.bell.set()
        self.bell = asyncio.Event()

    async def wait_until_given(self) -> None:
        """Return once there is an order."""
        while True:
            bell = self.bell
            if self.is_given:
                return
            await bell.wait()
