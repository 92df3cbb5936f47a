"""Entries in Redis, shared by servers and restarts.  It may be slow, full, wrong or gone: no prediction notices.

Every command has a deadline, by default of a twentieth of a second.  After a failure nobody asks any more, until a look
in the background, every few seconds, has found Redis again; so an outage costs one call one such wait.  Writing is done
in the background too, and left out when too much waits.
Importing this module needs the extra `headrace-server[redis]`.
"""

import asyncio
import time
from collections.abc import Callable

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from headrace_server.inference.errands import Errands
from headrace_server.telemetry.metrics import Metrics

PREFIX = "headrace:answers:1:"
QUIET_SECONDS = 5.0
"""How long Redis is left alone after a failure, before it is looked for."""
LOOK_SECONDS = 1.0
"""How long looking for it may take: connections are made then, and a busy machine takes its time over that."""
MOST_WRITES = 64
_FAILURES = (RedisError, OSError, TimeoutError)

log = structlog.get_logger()


class RedisTier:
    """Entries below one prefix.  Belongs to the event loop."""

    def __init__(
        self,
        url: str,
        metrics: Metrics,
        *,
        keep_seconds: float,
        max_entry_bytes: int,
        command_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Redis forgets what is older than `keep_seconds`.  Raises ValueError for what is no URL of a Redis."""
        self._redis = Redis.from_url(
            url,
            socket_timeout=max(LOOK_SECONDS, command_seconds),
            socket_connect_timeout=LOOK_SECONDS,
            max_connections=16,
            retry=None,
            decode_responses=False,
        )
        self._metrics = metrics
        self._keep_ms = round(keep_seconds * 1000)
        self._max_entry_bytes = max_entry_bytes
        self._command_seconds = command_seconds
        self._clock = clock
        self._is_there = False
        self._quiet_until = 0.0
        self._looking: asyncio.Task[None] | None = None
        self._errands = Errands()
        self._num_writing = 0

    async def open(self) -> None:
        """Look for Redis, for a second at most; it may also come later."""
        await self._look()

    async def get(self, key: str) -> bytes | None:
        """The entry of a key; None when there is none, or Redis does not say in time."""
        if not self._is_there:
            self._look_soon()
            return None
        try:
            async with asyncio.timeout(self._command_seconds):
                found = await self._redis.get(PREFIX + key)
        except _FAILURES as error:
            self._fail("get", error)
            return None
        return found if isinstance(found, bytes) and len(found) <= self._max_entry_bytes else None

    def put(self, key: str, content: bytes) -> None:
        """Have an entry written, if Redis is there and not too much waits already."""
        if not self._is_there or len(content) > self._max_entry_bytes or self._num_writing >= MOST_WRITES:
            return
        self._num_writing += 1
        self._errands.start(self._put(key, content))

    async def close(self) -> None:
        """Finish what is being written, and end the connections."""
        await self._errands.finish()  # each has its deadline
        await self._redis.aclose()

    async def _put(self, key: str, content: bytes) -> None:
        try:
            async with asyncio.timeout(self._command_seconds):
                await self._redis.set(PREFIX + key, content, px=self._keep_ms)
        except _FAILURES as error:
            self._fail("put", error)
        finally:
            self._num_writing -= 1

    def _look_soon(self) -> None:
        if self._clock() >= self._quiet_until and (self._looking is None or self._looking.done()):
            self._looking = self._errands.start(self._look())

    async def _look(self) -> None:
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                await self._redis.ping()
        except _FAILURES as error:
            self._fail("look", error)
            return
        if not self._is_there:
            log.info("cache.redis_found")
        self._is_there = True

    def _fail(self, operation: str, error: Exception) -> None:
        self._metrics.cache_redis_failures.labels(operation).inc()
        if self._is_there or operation == "look":
            log.warning("cache.redis_failed", operation=operation, problem=f"{type(error).__name__}: {error}")
        self._is_there = False
        self._quiet_until = self._clock() + QUIET_SECONDS
