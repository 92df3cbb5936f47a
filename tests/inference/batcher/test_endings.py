"""What callers may rely on, of any batcher: failures reach whom they concern, and the end reaches all."""

import asyncio
import time

import numpy as np
import pytest

from headrace_server.errors import DeviceOutOfMemory, Draining
from tests.inference.batcher_under_test import (
    BatcherUnderTest,
    MakeBatcher,
    callers_in,
    compute,
    deliver,
    is_answer_to,
    limits,
    outcomes,
    rows_of,
    run_all,
    submit,
)


async def test_of_a_failed_batch_only_the_guilty_call_fails(batcher: BatcherUnderTest) -> None:
    inputs = [rows_of(caller) for caller in range(5)]
    tickets = [submit(batcher, rows) for rows in inputs]
    batches = []

    while (batch := batcher.take(timeout=0)) is not None:
        batches.append(callers_in(batch))
        if 3 in callers_in(batch):
            batcher.fail(batch, ValueError("three is bad"))
        else:
            batcher.settle(batch, compute(batch.inputs), 0.001)
    await deliver()

    assert batches == [[0, 1, 2, 3, 4], [0], [1], [2], [3], [4]]
    assert outcomes(tickets) == ["answered"] * 3 + ["ModelFailed", "answered"]
    assert "three is bad" in str(tickets[3].future.exception())
    for caller in (0, 1, 2, 4):
        assert is_answer_to(tickets[caller].future.result(), inputs[caller])


async def test_an_error_of_ours_reaches_the_caller_as_it_is(batcher: BatcherUnderTest) -> None:
    ticket = submit(batcher, rows_of(1))
    batch = batcher.take(timeout=0)
    assert batch is not None

    batcher.fail(batch, DeviceOutOfMemory("cuda:0"))
    await deliver()

    assert outcomes([ticket]) == ["DeviceOutOfMemory"]


@pytest.mark.parametrize("rows", [0, 1, 4])
async def test_outputs_with_another_number_of_rows_reach_nobody(batcher: BatcherUnderTest, rows: int) -> None:
    tickets = [submit(batcher, rows_of(caller)) for caller in range(3)]

    while (batch := batcher.take(timeout=0)) is not None:
        wrong = np.zeros((rows if batch.calls > 1 else batch.rows + 1, 2), np.int64)
        batcher.settle(batch, {"y": wrong}, 0.001)
    await deliver()

    assert outcomes(tickets) == ["ModelFailed"] * 3


async def test_a_caller_who_leaves_between_a_failure_and_the_second_try_is_not_computed_again(
    batcher: BatcherUnderTest,
) -> None:
    tickets = [submit(batcher, rows_of(caller)) for caller in range(3)]
    batch = batcher.take(timeout=0)
    assert batch is not None
    batcher.fail(batch, ValueError("all"))

    batcher.leave(tickets[1])

    assert run_all(batcher) == [[0], [2]]
    await deliver()
    assert outcomes(tickets) == ["answered", "left", "answered"]


async def test_one_failed_slice_fails_its_call_once_and_spares_the_rest(batcher: BatcherUnderTest) -> None:
    large, small = submit(batcher, rows_of(1, 20)), submit(batcher, rows_of(2))
    batch = batcher.take(timeout=0)
    assert batch is not None

    batcher.fail(batch, ValueError("slice"))

    assert run_all(batcher) == [[2]]
    await deliver()
    assert outcomes([large, small]) == ["ModelFailed", "answered"]
    assert batcher.calls_in_flight == 0


async def test_closing_answers_everything_that_waits_and_sends_the_lanes_home(make: MakeBatcher) -> None:
    batcher = make(limits(rows=1, lanes=2), loop=asyncio.get_running_loop(), clock=time.monotonic)
    taking = asyncio.ensure_future(asyncio.to_thread(batcher.take, 1))
    await asyncio.wait([taking], timeout=0.05)
    running = submit(batcher, rows_of(0))
    batch = await asyncio.wait_for(taking, 10)
    waiting = [submit(batcher, rows_of(caller)) for caller in range(1, 4)]
    taking = asyncio.ensure_future(asyncio.to_thread(batcher.take, 1))
    first = await asyncio.wait_for(taking, 10)
    assert first is not None
    batcher.fail(first, Draining())

    batcher.close(Draining)
    await deliver()

    assert outcomes(waiting) == ["Draining"] * 3
    assert outcomes([running]) == ["waits"]
    assert batcher.take(1) is None
    with pytest.raises(Draining):
        submit(batcher, rows_of(9))
    assert batch is not None
    batcher.settle(batch, compute(batch.inputs), 0.001)
    await deliver()
    assert outcomes([running]) == ["answered"]


async def test_an_idle_lane_goes_home_when_the_batcher_closes(make: MakeBatcher) -> None:
    batcher = make(limits(), loop=asyncio.get_running_loop(), clock=time.monotonic)
    taking = asyncio.ensure_future(asyncio.to_thread(batcher.take))
    await asyncio.wait([taking], timeout=0.05)

    batcher.close(Draining)

    assert await asyncio.wait_for(taking, 10) is None


async def test_abandoning_answers_what_runs_too_and_a_late_answer_is_ignored(batcher: BatcherUnderTest) -> None:
    running = submit(batcher, rows_of(0))
    batch = batcher.take(timeout=0)
    waiting = submit(batcher, rows_of(1))

    batcher.close(lambda: RuntimeError("the lane is gone"), abandon=True)
    await deliver()
    assert batch is not None
    batcher.settle(batch, compute(batch.inputs), 0.001)
    await deliver()

    assert outcomes([running, waiting]) == ["RuntimeError"] * 2
    assert batcher.calls_in_flight == 0


async def test_a_batch_that_fails_after_the_close_is_not_tried_again(batcher: BatcherUnderTest) -> None:
    tickets = [submit(batcher, rows_of(caller)) for caller in range(2)]
    batch = batcher.take(timeout=0)
    assert batch is not None

    batcher.close(Draining)
    batcher.fail(batch, ValueError("no"))
    await deliver()

    assert outcomes(tickets) == ["Draining"] * 2
