"""Each batcher that the contract holds for, with a given clock."""

import asyncio

import pytest

from tests.doubles.hand_clock import HandClock
from tests.inference.batcher_under_test import (
    BATCHERS,
    BatcherUnderTest,
    MakeBatcher,
    limits,
)


@pytest.fixture(params=sorted(BATCHERS))
def make(request: pytest.FixtureRequest) -> MakeBatcher:
    return BATCHERS[request.param]


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
async def batcher(make: MakeBatcher, clock: HandClock) -> BatcherUnderTest:
    return make(limits(), loop=asyncio.get_running_loop(), clock=clock)
