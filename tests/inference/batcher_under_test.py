"""What every batcher must be able to do, whatever it is written in: the seam that the contract tests speak to."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np

from headrace_server.inference.batch import Answer, BatchLimits
from headrace_server.inference.batcher import Batcher
from headrace_server.tensors import Array, Tensors
from tests.doubles.hand_clock import HandClock


class TicketUnderTest(Protocol):
    @property
    def future(self) -> "asyncio.Future[Answer]": ...


class BatchUnderTest(Protocol):
    @property
    def inputs(self) -> Tensors: ...
    @property
    def rows(self) -> int: ...
    @property
    def calls(self) -> int: ...


class BatcherUnderTest(Protocol):
    def submit(
        self, inputs: Tensors, nbytes: int, *, priority: int = 0, deadline: float | None = None
    ) -> TicketUnderTest: ...
    def leave(self, ticket: TicketUnderTest) -> bool: ...
    def expire(self, ticket: TicketUnderTest) -> None: ...
    def take(self, lane: int = 0, timeout: float | None = None) -> BatchUnderTest | None: ...
    def settle(self, batch: BatchUnderTest, outputs: Tensors, compute_seconds: float) -> None: ...
    def fail(self, batch: BatchUnderTest, error: BaseException) -> None: ...
    def run_alone(self) -> None: ...
    def drain(self) -> None: ...
    def close(self, why: Callable[[], BaseException], *, abandon: bool = False) -> None: ...
    @property
    def waiting_rows(self) -> int: ...
    @property
    def calls_in_flight(self) -> int: ...


class MakeBatcher(Protocol):
    def __call__(
        self, limits: BatchLimits, *, loop: asyncio.AbstractEventLoop, clock: Callable[[], float]
    ) -> BatcherUnderTest: ...


def make_native_batcher(
    limits: BatchLimits, *, loop: asyncio.AbstractEventLoop, clock: Callable[[], float]
) -> BatcherUnderTest:
    batcher: BatcherUnderTest = Batcher("models/m/versions/1", ["x"], limits, is_batchable=True, loop=loop, clock=clock)  # type: ignore[assignment]
    return batcher


BATCHERS: dict[str, MakeBatcher] = {"native": make_native_batcher}


def limits(
    rows: int = 8,
    nbytes: int = 1 << 30,
    waiting_rows: int = 1 << 20,
    waiting_bytes: int = 1 << 40,
    delay: float = 0,
    lanes: int = 1,
) -> BatchLimits:
    return BatchLimits(rows, nbytes, waiting_rows, waiting_bytes, delay, lanes)


def rows_of(caller: int, count: int = 1, width: int = 2) -> dict[str, Array]:
    """Rows that say whose they are: caller, then the number of the row."""
    rows = np.zeros((count, width), np.int64)
    rows[:, 0] = caller
    rows[:, 1] = np.arange(count)
    return {"x": rows}


def submit(
    batcher: BatcherUnderTest, inputs: Tensors, *, priority: int = 0, deadline: float | None = None
) -> TicketUnderTest:
    return batcher.submit(inputs, sum(array.nbytes for array in inputs.values()), priority=priority, deadline=deadline)


def compute(inputs: Tensors) -> dict[str, Array]:
    """The model: it remembers whose row is whose, and returns something else than it got."""
    return {"y": inputs["x"] * 3 + 1}


def callers_in(batch: BatchUnderTest) -> list[int]:
    """Whose rows are in a batch, in order."""
    seen: dict[int, None] = dict.fromkeys(int(caller) for caller in batch.inputs["x"][:, 0])
    return list(seen)


def is_answer_to(answer: Answer, inputs: Tensors) -> bool:
    return np.array_equal(answer.outputs["y"], compute(inputs)["y"])


async def deliver() -> None:
    """Let the loop hand out what lanes have settled."""
    for _ in range(3):
        await asyncio.sleep(0)


def run_all(batcher: BatcherUnderTest) -> list[Sequence[int]]:
    """Be the lane until nothing waits; return whose rows were in each batch."""
    batches: list[Sequence[int]] = []
    while (batch := batcher.take(timeout=0)) is not None:
        batches.append(callers_in(batch))
        batcher.settle(batch, compute(batch.inputs), 0.001)
    return batches


def outcomes(tickets: Iterable[TicketUnderTest]) -> list[str]:
    """What became of each call: "waits", "left", "answered" or the name of its error."""
    result = []
    for ticket in tickets:
        future = ticket.future
        if not future.done():
            result.append("waits")
        elif future.cancelled():
            result.append("left")
        else:
            error = future.exception()
            result.append("answered" if error is None else type(error).__name__)
    return result


async def teach(
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
