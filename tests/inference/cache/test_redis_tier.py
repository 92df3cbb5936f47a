"""Redis as it is, and as it is on a bad day."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from headrace_server.inference.cache import redis_tier
from headrace_server.inference.cache.redis_tier import MOST_WRITES, PREFIX, QUIET_SECONDS, RedisTier
from headrace_server.telemetry.metrics import Metrics
from tests.doubles.hand_clock import HandClock
from tests.doubles.redis_server import RedisServer, needs_redis, redis_running

pytestmark = needs_redis
KINDS = ("look", "get", "put")


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may take its time over a connection."""
    monkeypatch.setattr(redis_tier, "LOOK_SECONDS", 30.0)


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[RedisServer]:
    async with redis_running(tmp_path) as server:
        yield server


class Bench:
    def __init__(self, url: str, command_seconds: float = 30) -> None:
        self.metrics, self.clock = Metrics(), HandClock()
        self.tier = RedisTier(
            url, self.metrics, keep_seconds=60, max_entry_bytes=1000, command_seconds=command_seconds, clock=self.clock
        )

    async def keep(self, key: str, content: bytes) -> None:
        """Put, and wait until it is written or not."""
        self.tier.put(key, content)
        await self.settle()

    async def settle(self) -> None:
        """Wait for what it does in the background."""
        await self.tier._errands.finish()

    def failures(self) -> float:
        name = "headrace_cache_redis_failures_total"
        return sum(self.metrics.registry.get_sample_value(name, {"operation": each}) or 0 for each in KINDS)


@pytest.fixture
async def bench(redis: RedisServer) -> AsyncIterator[Bench]:
    bench = Bench(redis.url)
    await bench.tier.open()
    yield bench
    await bench.tier.close()


async def test_an_entry_comes_back_as_it_was_and_redis_forgets_it_in_time(bench: Bench, redis: RedisServer) -> None:
    await bench.keep("k", b"\x00 bytes \xff")

    assert await bench.tier.get("k") == b"\x00 bytes \xff"
    assert await bench.tier.get("other") is None
    async with Redis.from_url(redis.url) as client:
        assert 0 < await client.pttl(PREFIX + "k") <= 60_000
    assert bench.failures() == 0


async def test_an_entry_outlives_the_server_that_wrote_it(bench: Bench, redis: RedisServer) -> None:
    await bench.keep("k", b"answer")

    other = Bench(redis.url)
    await other.tier.open()

    assert await other.tier.get("k") == b"answer"
    await other.tier.close()


async def test_what_is_too_large_is_neither_written_nor_taken(bench: Bench, redis: RedisServer) -> None:
    await bench.keep("k", bytes(1001))
    async with Redis.from_url(redis.url) as client:
        assert await client.get(PREFIX + "k") is None
        await client.set(PREFIX + "k", bytes(1001))

    assert await bench.tier.get("k") is None


async def test_a_redis_that_is_gone_costs_one_failure_and_is_then_left_alone_for_a_while(
    bench: Bench, redis: RedisServer
) -> None:
    await bench.keep("k", b"answer")
    await redis.stop()

    assert await bench.tier.get("k") is None
    assert bench.failures() == 1
    for _ in range(100):
        assert await bench.tier.get("k") is None
        await bench.keep("k", b"answer")
    assert bench.failures() == 1

    await redis.start()
    bench.clock.advance(QUIET_SECONDS)
    assert await bench.tier.get("k") is None  # nobody waits: it is looked for in the background
    await bench.settle()
    await bench.keep("k", b"again")
    assert await bench.tier.get("k") == b"again"


async def test_a_redis_that_does_not_answer_is_waited_for_no_longer_than_a_command_may_take(
    bench: Bench, redis: RedisServer
) -> None:
    hasty = Bench(redis.url, command_seconds=0.05)
    await hasty.tier.open()
    assert hasty.failures() == 0
    redis.hold()
    try:
        async with asyncio.timeout(20):  # a loaded machine may be late, but a call that hangs is later
            assert await hasty.tier.get("k") is None
        assert hasty.failures() == 1
    finally:
        redis.release()
        await hasty.tier.close()


async def test_writes_that_wait_are_bounded(bench: Bench, redis: RedisServer) -> None:
    redis.hold()
    try:
        for number in range(10 * MOST_WRITES):
            bench.tier.put(f"k{number}", b"answer")
        assert len(bench.tier._errands._tasks) <= MOST_WRITES
    finally:
        redis.release()


async def test_a_redis_that_refuses_is_a_failure_like_another(bench: Bench, redis: RedisServer) -> None:
    async with Redis.from_url(redis.url) as client:
        await client.lpush(PREFIX + "list", "x")
        assert await bench.tier.get("list") is None  # WRONGTYPE
        assert bench.failures() == 1


def test_a_url_that_is_none_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="scheme"):
        Bench("http://127.0.0.1")
