"""What the world refused is tried again for as long as it is worth it, on a clock that a test gives."""

import pytest

from headrace_server.worker.persistence import Persistence


class Store:
    """A store that is away from one moment to another; also the clock, which only moves while somebody sleeps."""

    def __init__(self, back_at: float) -> None:
        self.now = 0.0
        self.num_attempts = 0
        self.refusals: list[str] = []
        self._back_at = back_at

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        assert 0 < seconds <= 5
        self.now += seconds

    async def put(self) -> float:
        self.num_attempts += 1
        if self.now < self._back_at:
            raise OSError("the store is away")
        return self.now

    async def note(self, problem: str) -> None:
        self.refusals.append(problem)

    def persistence(self, total_seconds: float = 600) -> Persistence:
        return Persistence(total_seconds, clock=self.clock, sleep=self.sleep)


async def test_a_store_that_is_away_for_a_minute_is_waited_for_and_used_within_seconds_of_its_return() -> None:
    store = Store(back_at=60)

    stored_at = await store.persistence().insist("checkpoint of step 7", store.put, store.note)

    assert 60 <= stored_at <= 65
    assert 12 <= store.num_attempts <= 40  # neither forgotten nor pestered
    assert set(store.refusals) == {"checkpoint of step 7: the store is away"}


async def test_a_store_that_stays_away_is_given_up_when_the_time_is_over() -> None:
    store = Store(back_at=float("inf"))

    with pytest.raises(OSError, match="the store is away"):
        await store.persistence(total_seconds=60).insist("export", store.put, store.note)

    assert 50 <= store.now <= 60


async def test_what_is_no_refusal_is_not_tried_again() -> None:
    store = Store(back_at=0)

    async def fail() -> None:
        store.num_attempts += 1
        raise ValueError("it is no checkpoint")

    with pytest.raises(ValueError, match="no checkpoint"):
        await store.persistence().insist("checkpoint", fail, store.note)

    assert store.num_attempts == 1
