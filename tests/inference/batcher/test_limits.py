"""What callers may rely on, of any batcher: deadlines, and how much may wait."""

import asyncio

import pytest

from headrace_server.errors import ExpiredInQueue, NoPermit
from tests.doubles.hand_clock import HandClock
from tests.inference.batcher_under_test import (
    BatcherUnderTest,
    MakeBatcher,
    compute,
    deliver,
    is_answer_to,
    limits,
    outcomes,
    rows_of,
    run_all,
    submit,
    teach,
)


async def test_a_call_whose_deadline_has_passed_is_answered_without_a_run(
    batcher: BatcherUnderTest, clock: HandClock
) -> None:
    late = submit(batcher, rows_of(0), deadline=clock() + 1)
    patient = submit(batcher, rows_of(1), deadline=clock() + 100)
    clock.advance(1.5)

    assert run_all(batcher) == [[1]]
    await deliver()

    assert outcomes([late, patient]) == ["ExpiredInQueue", "answered"]
    error = late.future.exception()
    assert isinstance(error, ExpiredInQueue)
    assert error.metadata["queue_ms"] == "1500"


async def test_expired_calls_are_answered_although_nothing_is_left_to_run(
    batcher: BatcherUnderTest, clock: HandClock
) -> None:
    tickets = [submit(batcher, rows_of(caller), deadline=clock() + 1) for caller in range(20)]
    clock.advance(2)

    assert batcher.take(timeout=0) is None
    await deliver()

    assert outcomes(tickets) == ["ExpiredInQueue"] * 20
    assert batcher.calls_in_flight == 0


async def test_a_call_is_answered_at_its_deadline_while_the_lane_is_busy(
    batcher: BatcherUnderTest, clock: HandClock
) -> None:
    running = submit(batcher, rows_of(0), deadline=clock() + 1)
    batch = batcher.take(timeout=0)
    waiting = submit(batcher, rows_of(1), deadline=clock() + 1)
    clock.advance(1)

    batcher.expire(running)
    batcher.expire(waiting)

    assert outcomes([running, waiting]) == ["waits", "ExpiredInQueue"]
    assert batch is not None
    batcher.settle(batch, compute(batch.inputs), 1)
    await deliver()
    assert outcomes([running]) == ["answered"]
    assert batcher.take(timeout=0) is None


async def test_a_call_that_cannot_meet_its_deadline_makes_room_for_those_that_can(
    batcher: BatcherUnderTest, clock: HandClock
) -> None:
    await teach(batcher, seconds=0.5)
    hopeless = submit(batcher, rows_of(1), deadline=clock() + 0.6)
    hopeful = submit(batcher, rows_of(2), deadline=clock() + 5)
    clock.advance(0.2)

    assert run_all(batcher) == [[2]]
    await deliver()

    assert outcomes([hopeless, hopeful]) == ["ExpiredInQueue", "answered"]


async def test_a_mere_prediction_never_leaves_a_lane_idle(batcher: BatcherUnderTest, clock: HandClock) -> None:
    await teach(batcher, seconds=100)
    ticket = submit(batcher, rows_of(1), deadline=clock() + 1)

    assert run_all(batcher) == [[1]]
    await deliver()

    assert outcomes([ticket]) == ["answered"]


async def test_a_call_that_would_miss_its_deadline_in_the_queue_is_refused_at_once(
    batcher: BatcherUnderTest, clock: HandClock
) -> None:
    await teach(batcher, seconds=1, rows=8)
    for caller in range(4):
        submit(batcher, rows_of(caller, 8), priority=1)

    with pytest.raises(NoPermit, match="would miss its deadline") as caught:
        submit(batcher, rows_of(9), deadline=clock() + 2)
    urgent = submit(batcher, rows_of(10), deadline=clock() + 2, priority=9)

    assert caught.value.retry_after.total_seconds() == pytest.approx(5, abs=0.1)
    assert outcomes([urgent]) == ["waits"]


async def test_more_rows_than_may_wait_are_refused_with_a_time_to_come_back(
    make: MakeBatcher, clock: HandClock
) -> None:
    batcher = make(limits(waiting_rows=10), loop=asyncio.get_running_loop(), clock=clock)
    await teach(batcher, seconds=0.25)
    first = submit(batcher, rows_of(0, 8))

    with pytest.raises(NoPermit) as caught:
        submit(batcher, rows_of(1, 3))
    second = submit(batcher, rows_of(2, 2))
    run_all(batcher)
    third = submit(batcher, rows_of(3, 10))
    run_all(batcher)
    await deliver()

    assert caught.value.metadata == {"model": "models/m/versions/1", "waiting_rows": "8", "limit": "10"}
    assert caught.value.retry_after.total_seconds() == pytest.approx(8 * 0.25 + 0.25)
    assert outcomes([first, second, third]) == ["answered"] * 3


async def test_more_bytes_than_may_wait_are_refused(make: MakeBatcher, clock: HandClock) -> None:
    row_bytes = rows_of(0)["x"].nbytes
    batcher = make(limits(waiting_bytes=2 * row_bytes), loop=asyncio.get_running_loop(), clock=clock)
    submit(batcher, rows_of(0))
    submit(batcher, rows_of(1))

    with pytest.raises(NoPermit, match="bytes"):
        submit(batcher, rows_of(2))


async def test_a_call_larger_than_what_may_wait_is_admitted_when_nothing_waits(
    make: MakeBatcher, clock: HandClock
) -> None:
    batcher = make(limits(rows=8, waiting_rows=10), loop=asyncio.get_running_loop(), clock=clock)
    large = rows_of(0, 50)

    ticket = submit(batcher, large)
    with pytest.raises(NoPermit):
        submit(batcher, rows_of(1))
    run_all(batcher)
    await deliver()

    assert is_answer_to(ticket.future.result(), large)


async def test_callers_who_leave_give_their_place_to_others(make: MakeBatcher, clock: HandClock) -> None:
    batcher = make(limits(waiting_rows=10), loop=asyncio.get_running_loop(), clock=clock)

    for caller in range(1000):
        batcher.leave(submit(batcher, rows_of(caller, 10)))

    assert batcher.waiting_rows == 0
    submit(batcher, rows_of(0, 10))
