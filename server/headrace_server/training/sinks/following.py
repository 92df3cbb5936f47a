"""All sinks of a server, each following by itself: opened and closed together."""

import asyncio
from collections.abc import Sequence

from headrace_server.database.database import Database
from headrace_server.settings import SinkSettings
from headrace_server.telemetry.metrics import Metrics
from headrace_server.training.owned_tasks import OwnedTasks
from headrace_server.training.sinks.follower import Follower
from headrace_server.training.sinks.thread import SinkThread

DRAIN_SECONDS = 5.0
CLOSE_SECONDS = 2.0


class Following:
    """Every sink, and where it is."""

    def __init__(self, sinks: Sequence[tuple[SinkSettings, SinkThread]], database: Database, metrics: Metrics) -> None:
        self._followers = [Follower(settings, sink, database, metrics) for settings, sink in sinks]
        self._tasks = OwnedTasks()

    def open(self) -> None:
        """Let each sink go on where it was."""
        for follower in self._followers:
            self._tasks.run(follower.run())

    def ring(self) -> None:
        """Something was added to a history, and is durable."""
        for follower in self._followers:
            follower.ring()

    async def drain(self) -> None:
        """Tell of what there is by now, within a few seconds; what is left is told by the next server."""
        await asyncio.gather(*(follower.drain(DRAIN_SECONDS) for follower in self._followers))

    async def close(self) -> None:
        """Stop telling, and close every sink; one that hangs is left."""
        await self._tasks.close()
        await asyncio.gather(*(follower.close(CLOSE_SECONDS) for follower in self._followers))
