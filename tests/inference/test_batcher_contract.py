"""What callers may rely on, of any batcher.  Written against `batcher_under_test.py` only."""

import asyncio
import gc
import random
import threading
import time

import numpy as np
import pytest

from headrace_server.errors import DeviceOutOfMemory, Draining, ExpiredInQueue, ModelFailed, NoPermit
from tests.doubles.hand_clock import HandClock
from tests.inference.batcher_under_test import (
    BATCHERS,
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


@pytest.fixture(params=sorted(BATCHERS))
def make(request: pytest.FixtureRequest) -> MakeBatcher:
    return BATCHERS[request.param]


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
async def batcher(make: MakeBatcher, clock: HandClock) -> BatcherUnderTest:
    return make(limits(), loop=asyncio.get_running_loop(), clock=clock)


# Who hangs up.


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


# How batches are formed.


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


# Company.


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
    await _teach(batcher, seconds=0.5, delay=5, clock=clock)
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


# Deadlines.


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
    await _teach(batcher, seconds=0.5)
    hopeless = submit(batcher, rows_of(1), deadline=clock() + 0.6)
    hopeful = submit(batcher, rows_of(2), deadline=clock() + 5)
    clock.advance(0.2)

    assert run_all(batcher) == [[2]]
    await deliver()

    assert outcomes([hopeless, hopeful]) == ["ExpiredInQueue", "answered"]


async def test_a_mere_prediction_never_leaves_a_lane_idle(batcher: BatcherUnderTest, clock: HandClock) -> None:
    await _teach(batcher, seconds=100)
    ticket = submit(batcher, rows_of(1), deadline=clock() + 1)

    assert run_all(batcher) == [[1]]
    await deliver()

    assert outcomes([ticket]) == ["answered"]


async def test_a_call_that_would_miss_its_deadline_in_the_queue_is_refused_at_once(
    batcher: BatcherUnderTest, clock: HandClock
) -> None:
    await _teach(batcher, seconds=1, rows=8)
    for caller in range(4):
        submit(batcher, rows_of(caller, 8), priority=1)

    with pytest.raises(NoPermit, match="would miss its deadline") as caught:
        submit(batcher, rows_of(9), deadline=clock() + 2)
    urgent = submit(batcher, rows_of(10), deadline=clock() + 2, priority=9)

    assert caught.value.retry_after.total_seconds() == pytest.approx(5, abs=0.1)
    assert outcomes([urgent]) == ["waits"]


async def _teach(
    batcher: BatcherUnderTest, seconds: float, rows: int = 1, delay: float = 0, clock: HandClock | None = None
) -> None:
    """Let it see runs that take so long."""
    for _ in range(20):
        submit(batcher, rows_of(0, rows))
        if clock is not None:
            clock.advance(delay)
        batch = batcher.take(timeout=0)
        assert batch is not None
        batcher.settle(batch, compute(batch.inputs), seconds)
    await deliver()


# Limits on what waits.


async def test_more_rows_than_may_wait_are_refused_with_a_time_to_come_back(
    make: MakeBatcher, clock: HandClock
) -> None:
    batcher = make(limits(waiting_rows=10), loop=asyncio.get_running_loop(), clock=clock)
    await _teach(batcher, seconds=0.25)
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


# Failures.


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


# The end.


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
