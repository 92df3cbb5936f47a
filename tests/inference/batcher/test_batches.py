"""What callers may rely on, of any batcher: what is computed together, in which order, and when."""

import asyncio
import time

import numpy as np
import pytest

from tests.doubles.hand_clock import HandClock
from tests.inference.batcher_under_test import (
    BatcherUnderTest,
    MakeBatcher,
    callers_in,
    deliver,
    is_answer_to,
    limits,
    outcomes,
    rows_of,
    run_all,
    submit,
    teach,
)


async def test_what_waits_is_computed_together_in_the_order_of_arrival(batcher: BatcherUnderTest) -> None:
    tickets = [submit(batcher, rows_of(caller)) for caller in range(5)]

    assert run_all(batcher) == [[0, 1, 2, 3, 4]]
    await deliver()

    answers = [ticket.future.result() for ticket in tickets]
    assert {answer.batch_rows for answer in answers} == {5}
    assert {answer.batch_calls for answer in answers} == {5}


async def test_a_free_lane_does_not_wait_for_company(batcher: BatcherUnderTest) -> None:
    submit(batcher, rows_of(1))

    batch = batcher.take(timeout=0)

    assert batch is not None
    assert batch.calls == 1


async def test_higher_priority_goes_first_then_earlier_arrival(batcher: BatcherUnderTest) -> None:
    for caller, priority in enumerate([0, 0, 5, -5, 5]):
        submit(batcher, rows_of(caller, 4), priority=priority)

    assert run_all(batcher) == [[2, 4], [0, 1], [3]]


async def test_a_batch_has_at_most_the_rows_that_it_may_have(batcher: BatcherUnderTest) -> None:
    for caller in range(4):
        submit(batcher, rows_of(caller, 3))

    assert run_all(batcher) == [[0, 1], [2, 3]]


async def test_a_batch_has_at_most_the_bytes_that_it_may_have(make: MakeBatcher, clock: HandClock) -> None:
    row_bytes = rows_of(0)["x"].nbytes
    batcher = make(limits(rows=100, nbytes=3 * row_bytes), loop=asyncio.get_running_loop(), clock=clock)
    for caller in range(5):
        submit(batcher, rows_of(caller))

    assert run_all(batcher) == [[0, 1, 2], [3, 4]]


async def test_only_rows_of_the_same_shape_are_computed_together(batcher: BatcherUnderTest) -> None:
    inputs = [rows_of(caller, width=2 + caller % 2) for caller in range(5)]
    tickets = [submit(batcher, rows) for rows in inputs]

    assert run_all(batcher) == [[0, 2, 4], [1, 3]]
    await deliver()

    for ticket, rows in zip(tickets, inputs, strict=True):
        assert is_answer_to(ticket.future.result(), rows)


async def test_a_call_larger_than_a_batch_is_computed_in_slices_and_answered_whole(batcher: BatcherUnderTest) -> None:
    large, small = rows_of(1, 21), rows_of(2, 3)
    tickets = [submit(batcher, large), submit(batcher, small)]

    assert run_all(batcher) == [[1], [1], [1, 2]]
    await deliver()

    assert is_answer_to(tickets[0].future.result(), large)
    assert is_answer_to(tickets[1].future.result(), small)
    assert tickets[0].future.result().batch_rows == 8
    assert tickets[0].future.result().compute_seconds == pytest.approx(0.003)


async def test_a_call_with_more_bytes_than_a_batch_is_sliced_too_and_a_single_row_runs_alone(
    make: MakeBatcher, clock: HandClock
) -> None:
    row_bytes = rows_of(0)["x"].nbytes
    batcher = make(limits(rows=100, nbytes=2 * row_bytes), loop=asyncio.get_running_loop(), clock=clock)
    five, wide = rows_of(1, 5), rows_of(2, width=50)
    tickets = [submit(batcher, five), submit(batcher, wide)]

    assert run_all(batcher) == [[1], [1], [1], [2]]
    await deliver()

    assert is_answer_to(tickets[0].future.result(), five)
    assert is_answer_to(tickets[1].future.result(), wide)


async def test_a_model_that_is_not_batchable_runs_each_call_alone_and_whole(batcher: BatcherUnderTest) -> None:
    batcher.run_alone()
    inputs = [rows_of(caller, 20) for caller in range(3)]
    tickets = [submit(batcher, rows) for rows in inputs]
    seen = []

    while (batch := batcher.take(timeout=0)) is not None:
        seen.append(callers_in(batch))
        batcher.settle(batch, {"y": np.array(callers_in(batch)[0])}, 0.001)
    await deliver()

    assert seen == [[0], [1], [2]]
    assert [int(ticket.future.result().outputs["y"]) for ticket in tickets] == [0, 1, 2]


async def test_a_lone_call_is_not_copied(batcher: BatcherUnderTest) -> None:
    inputs = rows_of(1, 3)
    submit(batcher, inputs)

    batch = batcher.take(timeout=0)

    assert batch is not None
    assert batch.inputs["x"] is inputs["x"]


async def test_an_answer_keeps_its_rows_when_the_next_batch_is_assembled(batcher: BatcherUnderTest) -> None:
    """The model hands back its very inputs: the arrays of the batch must not be used again while a caller has them."""
    tickets, inputs = [], []
    for round_ in range(3):
        for caller in range(2):
            inputs.append(rows_of(10 * round_ + caller, 2))
            tickets.append(submit(batcher, inputs[-1]))
        batch = batcher.take(timeout=0)
        assert batch is not None
        batcher.settle(batch, {"y": batch.inputs["x"]}, 0.001)
    await deliver()

    for ticket, rows in zip(tickets, inputs, strict=True):
        assert np.array_equal(ticket.future.result().outputs["y"], rows["x"])


async def test_text_is_batched_like_numbers(batcher: BatcherUnderTest) -> None:
    inputs = [{"x": np.array([[f"caller {caller}"]], object)} for caller in range(3)]
    tickets = [batcher.submit(words, 8) for words in inputs]

    batch = batcher.take(timeout=0)
    assert batch is not None
    batcher.settle(batch, {"y": batch.inputs["x"]}, 0.001)
    await deliver()

    assert [str(ticket.future.result().outputs["y"][0, 0]) for ticket in tickets] == [
        f"caller {caller}" for caller in range(3)
    ]


async def test_with_a_delay_a_lane_waits_for_company_until_the_batch_is_full(make: MakeBatcher) -> None:
    batcher = make(limits(rows=3, delay=30), loop=asyncio.get_running_loop(), clock=time.monotonic)
    submit(batcher, rows_of(0))
    taking = asyncio.ensure_future(asyncio.to_thread(batcher.take))

    done, _ = await asyncio.wait([taking], timeout=0.05)
    assert not done
    submit(batcher, rows_of(1))
    submit(batcher, rows_of(2))

    batch = await asyncio.wait_for(taking, 10)
    assert batch is not None
    assert callers_in(batch) == [0, 1, 2]


async def test_with_a_delay_a_lane_waits_no_longer_than_that(make: MakeBatcher, clock: HandClock) -> None:
    batcher = make(limits(delay=0.5), loop=asyncio.get_running_loop(), clock=clock)
    submit(batcher, rows_of(0))

    assert batcher.take(timeout=0) is None
    clock.advance(0.5)
    batch = batcher.take(timeout=0)

    assert batch is not None


async def test_a_delay_never_costs_a_call_its_deadline(make: MakeBatcher, clock: HandClock) -> None:
    batcher = make(limits(delay=5), loop=asyncio.get_running_loop(), clock=clock)
    await teach(batcher, seconds=0.5, delay=5, clock=clock)
    ticket = submit(batcher, rows_of(0), deadline=clock() + 1)

    clock.advance(0.25)
    assert batcher.take(timeout=0) is None
    clock.advance(0.25)

    assert run_all(batcher) == [[0]]
    await deliver()
    assert outcomes([ticket]) == ["answered"]


async def test_draining_ends_the_wait_for_company(make: MakeBatcher) -> None:
    batcher = make(limits(delay=30), loop=asyncio.get_running_loop(), clock=time.monotonic)
    submit(batcher, rows_of(0))
    taking = asyncio.ensure_future(asyncio.to_thread(batcher.take))
    await asyncio.wait([taking], timeout=0.05)

    batcher.drain()

    assert await asyncio.wait_for(taking, 10) is not None
