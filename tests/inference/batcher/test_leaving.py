"""What callers may rely on, of any batcher: whoever hangs up disturbs nobody else."""

import asyncio
import gc
import random
import threading
import time

import pytest

from headrace_server.errors import Draining, ModelFailed
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


@pytest.mark.parametrize("leaver", range(5))
@pytest.mark.parametrize("moment", ["before the batch", "while it runs", "when it is done"])
async def test_one_caller_hanging_up_does_not_disturb_the_others(
    batcher: BatcherUnderTest, leaver: int, moment: str
) -> None:
    inputs = [rows_of(caller, 1 + caller % 2) for caller in range(5)]
    tickets = [submit(batcher, rows) for rows in inputs]

    if moment == "before the batch":
        assert batcher.leave(tickets[leaver])
    batch = batcher.take(timeout=0)
    assert batch is not None
    assert (leaver in callers_in(batch)) == (moment != "before the batch")
    if moment == "while it runs":
        assert not batcher.leave(tickets[leaver])
    batcher.settle(batch, compute(batch.inputs), 0.001)
    if moment == "when it is done":
        assert not batcher.leave(tickets[leaver])
    await deliver()

    for caller, ticket in enumerate(tickets):
        if caller == leaver:
            assert ticket.future.cancelled()
        else:
            assert is_answer_to(ticket.future.result(), inputs[caller])
    assert batcher.calls_in_flight == 0
    assert batcher.waiting_rows == 0


async def test_a_batch_of_callers_who_have_all_gone_is_not_computed(batcher: BatcherUnderTest) -> None:
    tickets = [submit(batcher, rows_of(caller)) for caller in range(4)]

    for ticket in tickets:
        batcher.leave(ticket)

    assert batcher.take(timeout=0) is None
    assert batcher.waiting_rows == 0


async def test_leaving_twice_or_after_the_answer_is_harmless(batcher: BatcherUnderTest) -> None:
    ticket = submit(batcher, rows_of(1))
    run_all(batcher)
    await deliver()

    batcher.leave(ticket)
    batcher.leave(ticket)

    assert outcomes([ticket]) == ["answered"]
    assert batcher.calls_in_flight == 0


async def test_a_failure_that_nobody_waits_for_any_more_is_not_reported_as_forgotten(batcher: BatcherUnderTest) -> None:
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    ticket = submit(batcher, rows_of(1))
    batch = batcher.take(timeout=0)
    assert batch is not None
    batcher.fail(batch, ValueError("bad"))
    await deliver()

    batcher.leave(ticket)
    del ticket, batch
    gc.collect()
    await deliver()

    assert reported == []


class StormLane(threading.Thread):
    """Computes until the batcher closes; now and then a batch fails."""

    def __init__(self, batcher: BatcherUnderTest, number: int) -> None:
        super().__init__()
        self._batcher, self._number, self._rng = batcher, number, random.Random(number)
        self.largest = 0

    def run(self) -> None:
        while (batch := self._batcher.take(self._number)) is not None:
            self.largest = max(self.largest, batch.rows)
            outputs = compute(batch.inputs)
            if self._rng.random() < 0.02:
                self._batcher.fail(batch, ValueError("this batch"))
            else:
                self._batcher.settle(batch, outputs, 0.0001)


async def _call(batcher: BatcherUnderTest, caller: int, rows: int, priority: int) -> str:
    inputs = rows_of(caller, rows)
    ticket = submit(batcher, inputs, priority=priority)
    try:
        answer = await ticket.future
    except asyncio.CancelledError:
        batcher.leave(ticket)
        return "left"
    except ModelFailed:
        return "failed"
    assert is_answer_to(answer, inputs)
    return "answered"


async def test_a_cancel_storm_leaves_everyone_else_with_exactly_their_own_rows(make: MakeBatcher) -> None:
    storm = random.Random(7)
    batcher = make(limits(rows=16, lanes=2), loop=asyncio.get_running_loop(), clock=time.monotonic)
    lanes = [StormLane(batcher, number) for number in range(2)]
    for lane in lanes:
        lane.start()

    async with asyncio.timeout(60):
        calls = []
        for caller in range(5000):
            rows, priority = storm.choice([1, 1, 1, 2, 5, 40]), storm.randint(-1, 1)
            calls.append(asyncio.create_task(_call(batcher, caller, rows, priority)))
            if caller % 50 == 0:
                await asyncio.sleep(0)
                for call in storm.sample(calls[-60:], min(len(calls), 12)):
                    call.cancel()
        results = await asyncio.gather(*calls, return_exceptions=True)
    batcher.close(Draining)
    for lane in lanes:
        await asyncio.to_thread(lane.join, 10)

    # Those that were cancelled before they began never called.
    left = results.count("left") + sum(isinstance(result, asyncio.CancelledError) for result in results)
    assert 250 < left < 1250
    assert results.count("answered") + left + results.count("failed") == 5000
    assert results.count("answered") > 3000
    assert max(lane.largest for lane in lanes) <= 16
    assert batcher.calls_in_flight == 0
    assert batcher.waiting_rows == 0
