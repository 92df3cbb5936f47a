"""What this batcher does beyond the contract of all: deadlines by itself, shared lanes, conversion, idleness."""

import asyncio
import gc
import os
import threading
import time

import ml_dtypes
import numpy as np
import pytest

from headrace_server import _native
from headrace_server.errors import Draining, ModelFailed, NoPermit
from headrace_server.inference.batch import BatchLimits, Reason
from headrace_server.inference.batcher import Batcher
from headrace_server.inference.letters import mailbox_of
from headrace_server.inference.meters import new_meters
from headrace_server.tensors import Array, DataType
from tests.doubles.hand_clock import HandClock
from tests.inference.batcher_under_test import compute, deliver, limits, outcomes, rows_of


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


def make(limits: BatchLimits, clock: HandClock | None = None, lanes: _native.LaneGroup | None = None) -> Batcher:
    return Batcher(
        "models/m/versions/1",
        ["x"],
        limits,
        is_batchable=True,
        loop=asyncio.get_running_loop(),
        clock=clock or time.monotonic,
        lanes=lanes,
    )


def ask(batcher: Batcher, caller: int, *, deadline: float | None = None, count: int = 1) -> _native.Ticket:
    inputs = rows_of(caller, count)
    return batcher.submit(inputs, inputs["x"].nbytes, deadline=deadline)


def take(batcher: Batcher) -> _native.Batch:
    batch = batcher.take(timeout=10)
    assert batch is not None
    return batch


def teach(batcher: Batcher, seconds: float, count: int = 1) -> None:
    for _ in range(20):
        ask(batcher, 0, count=count)
        batch = take(batcher)
        batcher.settle(batch, compute(batch.inputs), seconds)


async def test_the_earlier_deadline_goes_first(clock: HandClock) -> None:
    batcher = make(limits(rows=1), clock)
    for caller, patience in enumerate([None, 5, 2, 3]):
        ask(batcher, caller, deadline=None if patience is None else clock() + patience)

    order = []
    for _ in range(4):
        batch = take(batcher)
        order.append(int(batch.inputs["x"][0, 0]))
        batcher.settle(batch, compute(batch.inputs), 0.001)

    assert order == [2, 3, 1, 0]


async def test_an_urgent_call_is_admitted_before_those_that_can_wait(clock: HandClock) -> None:
    batcher = make(limits(), clock)
    teach(batcher, 1, count=8)
    for caller in range(4):
        ask(batcher, caller, count=8)

    urgent = ask(batcher, 9, deadline=clock() + 1.5)
    with pytest.raises(NoPermit, match="would miss its deadline") as caught:
        ask(batcher, 10, deadline=clock() + 0.9)

    assert caught.value.retry_after.total_seconds() > 0
    assert take(batcher).inputs["x"][0, 0] == 9
    assert outcomes([urgent]) == ["waits"]


@pytest.mark.parametrize(
    ("delay", "patience", "reason"), [(0, None, Reason.IDLE), (2, None, Reason.DELAY), (2, 1.5, Reason.DEADLINE)]
)
async def test_a_batch_knows_why_it_closed(
    clock: HandClock, delay: float, patience: float | None, reason: Reason
) -> None:
    batcher = make(limits(delay=delay), clock)
    ask(batcher, 0)
    clock.advance(delay)
    first = take(batcher)
    batcher.settle(first, compute(first.inputs), 0.5)

    ask(batcher, 1, deadline=None if patience is None else clock() + patience)
    clock.advance(delay if patience is None else patience - 0.5)

    assert take(batcher).reason == reason


async def test_a_call_is_answered_at_its_deadline_without_anybodys_help_while_the_lane_is_busy() -> None:
    batcher = make(limits())
    running = ask(batcher, 0)
    batch = take(batcher)
    asked_at = time.monotonic()
    waiting = ask(batcher, 1, deadline=asked_at + 0.05)

    await asyncio.wait([waiting.future], timeout=10)

    assert outcomes([running, waiting]) == ["waits", "ExpiredInQueue"]
    assert time.monotonic() >= asked_at + 0.05
    batcher.settle(batch, compute(batch.inputs), 0.1)
    await running.future


async def test_lanes_that_serve_two_models_serve_both_and_outlive_each() -> None:
    lanes = _native.LaneGroup(1)
    first, second = make(limits(), lanes=lanes), make(limits(), lanes=lanes)
    tickets = [ask(first, 1), ask(second, 2)]

    for _ in range(2):
        batch = lanes.take(0, 10)
        assert batch is not None
        batch.batcher.settle(batch, compute(batch.inputs), 0.001)
    await asyncio.wait([ticket.future for ticket in tickets], timeout=10)
    first.close(Draining)

    assert outcomes(tickets) == ["answered", "answered"]
    assert not lanes.is_closed
    ask(second, 3)
    assert lanes.take(0, 10) is None  # it is rung for, to let go of what it has of the first
    batch = lanes.take(0, 10)
    assert batch is not None
    assert batch.batcher is second.native
    second.close(Draining, abandon=True)


@pytest.mark.parametrize(("wants", "dtype"), [(DataType.FP16, np.float16), (DataType.BF16, ml_dtypes.bfloat16)])
async def test_rows_become_what_the_program_takes_while_they_are_put_together(wants: DataType, dtype: type) -> None:
    batcher = make(limits())
    batcher.set_input_types(0, {"x": wants})
    values = np.linspace(-2, 2, 8, dtype=np.float32).reshape(4, 2)
    for rows in (values[:1], values[1:3], values[3:][:, ::-1]):
        batcher.submit({"x": rows}, rows.nbytes)

    batch = take(batcher)

    assert batch.inputs["x"].dtype == dtype
    expected: Array = np.concatenate([values[:3], values[3:][:, ::-1]]).astype(dtype)
    assert np.array_equal(batch.inputs["x"], expected)
    batcher.close(Draining, abandon=True)


async def test_whoever_waits_for_idleness_wakes_with_the_last_answer() -> None:
    batcher = make(limits())
    await asyncio.wait_for(batcher.wait_until_idle(), 10)
    ticket = ask(batcher, 1)
    waiting = asyncio.ensure_future(batcher.wait_until_idle())
    await deliver()
    assert not waiting.done()

    batch = take(batcher)
    batcher.settle(batch, compute(batch.inputs), 0.001)

    await asyncio.wait_for(waiting, 10)
    assert outcomes([ticket]) == ["answered"]


async def test_many_answers_wake_the_loop_once() -> None:
    batcher = make(limits(rows=64))
    tickets = [ask(batcher, caller) for caller in range(64)]
    batch = take(batcher)
    outputs = compute(batch.inputs)
    lane = threading.Thread(target=batcher.settle, args=(batch, outputs, 0.001))

    lane.start()
    lane.join()
    mailbox = mailbox_of(asyncio.get_running_loop())
    times_rung = os.eventfd_read(mailbox.fileno())
    letters = mailbox.empty()

    assert times_rung == 1
    assert [letter.refusal for letter in letters] == [None] * 64
    assert letters == tickets
    assert mailbox.empty() == []


@pytest.mark.parametrize("outputs", [{}, {"y": [1, 2]}, {"y": None}])
async def test_outputs_that_are_none_fail_the_call_and_not_the_lane(outputs: dict[str, object]) -> None:
    batcher = Batcher(
        "models/m/versions/1", ["x"], limits(), is_batchable=True,
        loop=asyncio.get_running_loop(), output_names=["y"],
    )  # fmt: skip
    ticket = ask(batcher, 1)

    batcher.settle(take(batcher), outputs, 0.001)  # type: ignore[arg-type]

    with pytest.raises(ModelFailed):
        await ticket.future


async def test_everything_is_counted_once() -> None:
    meters = new_meters()
    batcher = Batcher(
        "models/m/versions/1", ["x"], limits(waiting_rows=4), is_batchable=True,
        loop=asyncio.get_running_loop(), meters=meters,
    )  # fmt: skip
    answered, leaver, expired = ask(batcher, 0), ask(batcher, 1), ask(batcher, 2, deadline=time.monotonic())
    with pytest.raises(NoPermit):
        ask(batcher, 3, count=3)
    batcher.leave(leaver)
    batch = take(batcher)
    batcher.settle(batch, compute(batch.inputs), 0.002)
    await asyncio.wait([answered.future, expired.future], timeout=10)

    counts = meters.read()

    assert counts["outcomes"] == {"ok": 1, "left": 1, "EXPIRED_IN_QUEUE": 1, "NO_PERMIT": 1}
    assert counts["shed"] == {"left": 1, "expired": 1, "no_permit": 1}
    assert (counts["num_answered"], counts["answered_rows"], counts["num_failed"]) == (1, 1, 3)
    assert counts["batches"] == {"full": 0, "idle": 1, "delay": 0, "deadline": 0, "drain": 0}
    assert sum(counts["queue_seconds_histogram"][1]) == 1
    assert counts["compute_seconds_histogram"][2] == pytest.approx(0.002)


async def test_a_batcher_that_goes_without_being_closed_answers_all_the_same() -> None:
    batcher = make(limits())
    first, second = ask(batcher, 1), ask(batcher, 2)
    del batcher
    gc.collect()
    await deliver()

    assert outcomes([first, second]) == ["RuntimeError"] * 2
