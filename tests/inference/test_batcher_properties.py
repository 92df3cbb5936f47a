"""Whatever happens in whatever order: every admitted call ends in exactly one answer, rows never mix, limits hold."""

import asyncio

from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from headrace_server.errors import Draining, NoPermit
from headrace_server.tensors import Tensors
from tests.doubles.hand_clock import HandClock
from tests.inference.batcher_under_test import (
    BATCHERS,
    BatcherUnderTest,
    BatchUnderTest,
    TicketUnderTest,
    compute,
    deliver,
    is_answer_to,
    limits,
    outcomes,
    rows_of,
    submit,
)

MAX_ROWS, MAX_BYTES, MAX_WAITING_ROWS, MAX_WAITING_BYTES, NUM_LANES = 5, 100, 12, 400, 2


class AnyOrder(RuleBasedStateMachine):
    kind = "native"
    calls: Bundle[int] = Bundle("calls")
    batches: Bundle[BatchUnderTest] = Bundle("batches")

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = HandClock()
        self.batcher: BatcherUnderTest
        self.given: dict[int, tuple[Tensors, TicketUnderTest]] = {}
        self.answered: dict[int, str] = {}
        self.answers = 0
        self.free_lanes = list(range(NUM_LANES))
        self.is_closed = False

    @initialize(delay=st.sampled_from([0.0, 2.0]))
    def begin(self, delay: float) -> None:
        self.batcher = BATCHERS[self.kind](
            limits(MAX_ROWS, MAX_BYTES, MAX_WAITING_ROWS, MAX_WAITING_BYTES, delay, NUM_LANES),
            loop=self.loop,
            clock=self.clock,
        )

    @rule(
        target=calls,
        rows=st.sampled_from([1, 1, 2, 3, 7, 13]),
        width=st.sampled_from([2, 3]),
        priority=st.integers(-1, 1),
        patience=st.sampled_from([None, 0.5, 3.0]),
    )
    def call(self, rows: int, width: int, priority: int, patience: float | None) -> MultipleResults[int] | int:
        caller = len(self.given)
        inputs = rows_of(caller, rows, width)
        waited, deadline = self.batcher.waiting_rows, None if patience is None else self.clock() + patience
        try:
            ticket = submit(self.batcher, inputs, priority=priority, deadline=deadline)
        except NoPermit:
            assert waited > 0
            return multiple()
        except Draining:
            assert self.is_closed
            return multiple()
        assert waited == 0 or waited + rows <= MAX_WAITING_ROWS
        self.given[caller] = (inputs, ticket)
        ticket.future.add_done_callback(self._count)
        return caller

    def _count(self, _: object) -> None:
        self.answers += 1

    @rule(caller=calls)
    def leave(self, caller: int) -> None:
        self.batcher.leave(self.given[caller][1])

    @rule(caller=calls)
    def deadline_comes(self, caller: int) -> None:
        self.batcher.expire(self.given[caller][1])

    @rule(seconds=st.sampled_from([0.1, 1.0, 5.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @precondition(lambda self: self.free_lanes)
    @rule(target=batches)
    def take(self) -> MultipleResults[BatchUnderTest] | BatchUnderTest:
        batch = self.batcher.take(self.free_lanes[0], timeout=0)
        if batch is None:
            return multiple()
        assert not self.is_closed
        self.free_lanes.pop(0)
        rows = batch.inputs["x"]
        assert batch.rows == len(rows)
        assert batch.rows <= MAX_ROWS
        assert batch.calls == 1 or rows.nbytes <= MAX_BYTES
        return batch

    def _lane_is_free(self, batch: BatchUnderTest) -> None:
        self.free_lanes.append(batch.lane)  # type: ignore[attr-defined]

    @rule(batch=consumes(batches), seconds=st.sampled_from([0.001, 1.0]))
    def settle(self, batch: BatchUnderTest, seconds: float) -> None:
        self._lane_is_free(batch)
        self.batcher.settle(batch, compute(batch.inputs), seconds)

    @rule(batch=consumes(batches))
    def settle_with_a_row_missing(self, batch: BatchUnderTest) -> None:
        self._lane_is_free(batch)
        self.batcher.settle(batch, {"y": compute(batch.inputs)["y"][1:]}, 0.1)

    @rule(batch=consumes(batches))
    def fail(self, batch: BatchUnderTest) -> None:
        self._lane_is_free(batch)
        self.batcher.fail(batch, ValueError("failed"))

    @rule()
    def drain(self) -> None:
        self.batcher.drain()

    @precondition(lambda self: len(self.given) > 5)
    @rule(abandon=st.booleans())
    def close(self, abandon: bool) -> None:
        self.is_closed = True
        self.batcher.close(Draining, abandon=abandon)

    @rule()
    def loop_turns(self) -> None:
        self.loop.run_until_complete(deliver())

    @invariant()
    def answers_are_right_and_final(self) -> None:
        for caller, (inputs, ticket) in self.given.items():
            (now,) = outcomes([ticket])
            before = self.answered.get(caller, "waits")
            assert before in ("waits", now)
            self.answered[caller] = now
            if now == "answered":
                assert is_answer_to(ticket.future.result(), inputs)

    def teardown(self) -> None:
        try:
            if hasattr(self, "batcher"):
                self._finish()
        finally:
            self.loop.close()

    def _finish(self) -> None:
        """Let the lanes work on until nothing is left: then nobody may still wait."""
        self.batcher.drain()
        self.batcher.close(Draining, abandon=True) if self.is_closed else None
        while self.free_lanes and (batch := self.batcher.take(self.free_lanes[0], timeout=0)) is not None:
            self.batcher.settle(batch, compute(batch.inputs), 0.001)
        if len(self.free_lanes) < NUM_LANES:  # batches that no rule has given back
            self.batcher.close(Draining, abandon=True)
        self.loop.run_until_complete(deliver())
        self.answers_are_right_and_final()
        assert "waits" not in self.answered.values()
        assert self.answers == len(self.given)
        assert self.batcher.calls_in_flight == 0
        assert self.batcher.waiting_rows == 0


class TestAnyOrderNatively(AnyOrder.TestCase):  # type: ignore[valid-type,misc]
    settings = settings(
        max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
