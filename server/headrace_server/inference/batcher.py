"""Groups waiting predictions into batches and returns each caller its own rows.

The event loop submits calls that fit the signature; lane threads take batches, run the model, and hand outputs or an
error back.  Knows nothing about models, devices or gRPC.

- Every admitted call ends in exactly one answer.  A call whose caller has gone is left out of the batch, or, when it
  runs already, computed for nobody; its neighbours notice nothing.
- A free lane never waits for company, unless a delay was asked for.
- Higher priority goes first, then earlier arrival.  A call whose deadline has passed, or that cannot meet it by what
  recent runs took, is answered without a run; but a mere prediction never leaves a lane idle.
- A call with more rows or bytes than a batch may have is computed in slices.  A single row that is too large, and any
  call of a model that is not batchable, runs alone.
- A batch that fails is run again one call at a time, so that only the guilty one fails.
- How many rows came out is checked before anyone gets any.

`submit`, `leave`, `expire` and the futures belong to the event loop; `take`, `settle` and `fail` to lanes; the rest to
both.  The lock is only ever held for moments: rows are copied outside it.
"""

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import timedelta

from headrace_server.errors import ExpiredInQueue, HeadraceError, ModelFailed, NoPermit
from headrace_server.inference.assembly import Buffers, MixedRowsError, join, split
from headrace_server.inference.batch import Answer, Batch, BatchLimits, Group, Outcome, Part, Reason, Stage, Ticket
from headrace_server.inference.pace import Pace
from headrace_server.inference.waiting import WaitingRoom
from headrace_server.tensors import Tensors


class Batcher:
    """The waiting calls of one model version."""

    def __init__(
        self,
        model: str,
        input_names: Sequence[str],
        limits: BatchLimits,
        *,
        is_batchable: bool,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`model` is for messages; `input_names` are those of the signature, in its order."""
        self._model = model
        self._input_names = tuple(input_names)
        self._limits = limits
        self._is_batchable = is_batchable and bool(input_names)
        self._loop = loop
        self._clock = clock
        self._changed = threading.Condition(threading.Lock())
        # All of these are guarded by the lock.
        self._waiting = WaitingRoom()
        self._again: deque[Part] = deque()
        self._running: set[Batch] = set()
        self._pace = Pace()
        self._arrivals = 0
        self._is_draining = False
        self._closed_by: Callable[[], BaseException] | None = None
        # One for each lane, touched by that lane only.
        self._buffers = [Buffers(limits.max_batch_rows, limits.max_batch_bytes) for _ in range(limits.num_lanes)]
        # Touched on the loop only.
        self._calls = 0

    # What the loop does.

    def submit(self, inputs: Tensors, nbytes: int, *, priority: int = 0, deadline: float | None = None) -> Ticket:
        """Admit a call whose inputs fit the signature; `nbytes` is their size.

        Inputs must not change until the ticket's future is done.  Whoever stops waiting for it calls `leave`.

        Raises NoPermit when too much waits or the deadline would be missed, or what it was closed by.
        """
        ticket = Ticket(
            future=self._loop.create_future(),
            rows=len(inputs[self._input_names[0]]) if self._is_batchable else 1,
            priority=priority,
            deadline=deadline,
            admitted_at=self._clock(),
        )
        with self._changed:
            self._admit(ticket, nbytes)
            self._arrivals += 1
            for part in self._parts(ticket, inputs, nbytes):
                self._waiting.add(part)
            self._changed.notify(len(ticket.parts))
        self._calls += 1
        return ticket

    def leave(self, ticket: Ticket) -> bool:
        """Forget a call whose caller has gone; harmless when it is over.  Returns whether it was never run."""
        with self._changed:
            never_ran = ticket.started_at is None and not ticket.is_over
            self._withdraw(ticket)
        self._count_out(ticket)
        if not ticket.future.cancel() and not ticket.future.cancelled():
            ticket.future.exception()  # nobody will ask for it: do not let it be reported as forgotten
        return never_ran

    def expire(self, ticket: Ticket) -> None:
        """Answer a call, whose deadline has come, with ExpiredInQueue, unless it runs or is over."""
        with self._changed:
            if ticket.is_over or ticket.started_at is not None:
                return
            self._withdraw(ticket)
        self._deliver([(ticket, self._expired(ticket, self._clock()))])

    @property
    def calls_in_flight(self) -> int:
        """Admitted calls without an answer."""
        return self._calls

    def run_alone(self) -> None:
        """Never put two calls together, nor slice one.  Only before the first call."""
        assert self._arrivals == 0
        self._is_batchable = False

    # What anybody does.

    @property
    def waiting_rows(self) -> int:
        """Rows that wait for their first run."""
        return self._waiting.rows

    def drain(self) -> None:
        """From now on nobody waits for company.  Calls are still taken: whoever owns the door closes it."""
        with self._changed:
            self._is_draining = True
            self._changed.notify_all()

    def close(self, why: Callable[[], BaseException], *, abandon: bool = False) -> None:
        """Answer everything that waits with a new `why()` each and send the lanes home; what runs may still end well.

        With `abandon`, what runs is answered too: its lane will not come back.
        """
        with self._changed:
            if self._closed_by is None:
                self._closed_by = why
            parts = [*self._waiting.all(), *self._again]
            if abandon:
                parts += [part for batch in self._running for part in batch.parts]
            tickets = {id(part.ticket): part.ticket for part in parts if not part.ticket.is_over}
            for ticket in tickets.values():
                self._withdraw(ticket)
            self._changed.notify_all()
        self._answer([(ticket, why()) for ticket in tickets.values()])

    # What lanes do.

    def take(self, lane: int = 0, timeout: float | None = None) -> Batch | None:
        """Wait for work and return the next batch, assembled; None when closed, or after `timeout` seconds of no work.

        The batch must be given back through `settle` or `fail`.
        """
        refused: list[tuple[Ticket, Outcome]] = []
        limit = math.inf if timeout is None else self._clock() + timeout
        while True:
            with self._changed:
                batch = self._next(lane, limit, refused)
                if batch is not None:
                    self._running.add(batch)
                is_over = batch is None and not refused
            self._answer(refused)
            if is_over:
                return None
            if batch is not None and self._assemble(batch):
                return batch
            refused = []

    def settle(self, batch: Batch, outputs: Tensors, compute_seconds: float) -> None:
        """Give each caller of the batch its rows of the outputs, which must stay as they are.

        Outputs without exactly one row for each input row make the batch fail.
        """
        finished_at = self._clock()
        try:
            shares = split(outputs, batch.parts) if self._is_batchable else [dict(outputs)]
        except MixedRowsError as mixed:
            self.fail(batch, ModelFailed(self._model, str(mixed)))
            return
        self._buffers[batch.lane].release(list(outputs.values()))
        done: list[Ticket] = []
        with self._changed:
            self._running.discard(batch)
            self._pace.observe(batch.rows, compute_seconds)
            for part, share in zip(batch.parts, shares, strict=True):
                part.stage, part.outputs, part.inputs = Stage.OVER, share, {}
                ticket = part.ticket
                if ticket.is_over:
                    continue
                _note(ticket, batch, compute_seconds)
                ticket.parts_left -= 1
                if ticket.parts_left == 0:
                    ticket.is_over = True
                    done.append(ticket)
        self._answer([(ticket, _answer(ticket, finished_at)) for ticket in done])

    def fail(self, batch: Batch, error: BaseException) -> None:
        """Give up on a batch.  Its calls run again, each alone, unless it held only one.

        A HeadraceError reaches the caller as it is, and anything else as ModelFailed.
        """
        guilty: list[Ticket] = []
        with self._changed:
            self._running.discard(batch)
            for part in batch.parts:
                if part.ticket.is_over:
                    part.stage, part.inputs = Stage.OVER, {}
                elif batch.calls > 1 and self._closed_by is None:
                    part.stage = Stage.AGAIN
                    self._again.append(part)
                else:
                    guilty.append(part.ticket)
                    self._withdraw(part.ticket)
            self._changed.notify(len(self._again))
            closed_by = self._closed_by
        if batch.calls > 1 and closed_by is not None:
            self._answer([(ticket, closed_by()) for ticket in guilty])
        else:
            outcome = error if isinstance(error, HeadraceError) else self._model_failed(error)
            self._answer([(ticket, outcome) for ticket in guilty])

    # Inside, with the lock held.

    def _admit(self, ticket: Ticket, nbytes: int) -> None:
        if self._closed_by is not None:
            raise self._closed_by()
        rows, limits = self._waiting.rows, self._limits
        if rows == 0:
            return
        why = None
        if rows + ticket.rows > limits.max_waiting_rows:
            why = ""
        elif self._waiting.nbytes + nbytes > limits.max_waiting_bytes:
            why = f"inputs of more than {limits.max_waiting_bytes:,} bytes would wait"
        elif ticket.deadline is not None:
            ahead = self._waiting.rows_ahead_of(ticket.priority)
            if ticket.admitted_at + self._pace.seconds_until_done(ahead, limits.num_lanes) > ticket.deadline:
                why = "the call would miss its deadline"
        if why is not None:
            retry_after = timedelta(seconds=self._pace.retry_seconds(rows, limits.num_lanes))
            raise NoPermit(self._model, rows, limits.max_waiting_rows, retry_after, why)

    def _parts(self, ticket: Ticket, inputs: Tensors, nbytes: int) -> list[Part]:
        priority, arrival = -ticket.priority, self._arrivals
        step = ticket.rows
        group: Group = None
        if self._is_batchable:
            group = tuple(inputs[name].shape[1:] for name in self._input_names)
            row_bytes = max(nbytes // ticket.rows, 1)
            step = max(min(self._limits.max_batch_rows, self._limits.max_batch_bytes // row_bytes), 1)
        if ticket.rows <= step:
            ticket.parts = [Part(ticket, inputs, ticket.rows, nbytes, group, (priority, arrival, 0))]
        else:
            for start in range(0, ticket.rows, step):
                rows = min(step, ticket.rows - start)
                share = {name: array[start : start + rows] for name, array in inputs.items()}
                ticket.parts.append(Part(ticket, share, rows, rows * row_bytes, group, (priority, arrival, start)))
        ticket.parts_left = len(ticket.parts)
        return ticket.parts

    def _next(self, lane: int, limit: float, refused: list[tuple[Ticket, Outcome]]) -> Batch | None:
        """Wait until there is a batch, someone to refuse, or a reason to go home."""
        while self._closed_by is None:
            now = self._clock()
            while self._again:
                part = self._again.popleft()
                if part.stage is Stage.AGAIN:
                    part.stage = Stage.RUNNING
                    return Batch([part], part.rows, Reason.FULL, lane, now)
            first = self._waiting.first()
            wait_until = limit
            if first is not None:
                reason, closes_at = self._closing(first, now)
                if closes_at <= now:
                    batch = self._fill(first.group, reason, lane, now, refused)
                    if batch is not None or refused:
                        return batch
                    continue
                wait_until = min(limit, closes_at)
            if now >= limit:
                return None
            self._changed.wait(None if wait_until == math.inf else wait_until - now)
        return None

    def _closing(self, first: Part, now: float) -> tuple[Reason, float]:
        """When a batch that begins with `first` closes, and why."""
        delay = self._limits.max_delay_seconds
        if not self._is_batchable or delay == 0:
            return Reason.IDLE, now
        if self._is_draining:
            return Reason.DRAIN, now
        rows, nbytes = self._waiting.size_of(first.group)
        if rows >= self._limits.max_batch_rows or nbytes >= self._limits.max_batch_bytes:
            return Reason.FULL, now
        closes_at = first.ticket.admitted_at + delay
        deadline = self._waiting.earliest_deadline(first.group)
        if deadline is not None:
            closes_at = min(closes_at, deadline - self._pace.run_seconds)
        return Reason.DELAY, closes_at

    def _fill(
        self, group: Group, reason: Reason, lane: int, now: float, refused: list[tuple[Ticket, Outcome]]
    ) -> Batch | None:
        parts: list[Part] = []
        late: list[Part] = []
        rows = nbytes = 0
        while (part := self._waiting.first_of(group)) is not None:
            if parts and not self._fits(rows + part.rows, nbytes + part.nbytes):
                reason = Reason.FULL
                break
            self._waiting.take(part)
            deadline = part.ticket.deadline
            if deadline is not None and now + self._pace.run_seconds > deadline:
                late.append(part)
                continue
            parts.append(part)
            rows += part.rows
            nbytes += part.nbytes
        if not parts and (probe := next((part for part in late if not _has_expired(part, now)), None)):
            parts, rows = [probe], probe.rows  # a prediction alone never leaves a lane idle
            late.remove(probe)
        self._refuse(late, now, refused)
        if not parts:
            return None
        for part in parts:
            if part.ticket.started_at is None:
                part.ticket.started_at = now
        return Batch(parts, rows, reason, lane, now)

    def _refuse(self, late: list[Part], now: float, refused: list[tuple[Ticket, Outcome]]) -> None:
        for part in late:
            part.stage, part.inputs = Stage.OVER, {}
            if not part.ticket.is_over:
                self._withdraw(part.ticket)
                refused.append((part.ticket, self._expired(part.ticket, now)))

    def _fits(self, rows: int, nbytes: int) -> bool:
        return self._is_batchable and rows <= self._limits.max_batch_rows and nbytes <= self._limits.max_batch_bytes

    def _withdraw(self, ticket: Ticket) -> None:
        """Compute no more of a call."""
        ticket.is_over = True
        for part in ticket.parts:
            if part.stage is Stage.WAITING:
                self._waiting.withdraw(part)
            elif part.stage is Stage.AGAIN:
                part.stage, part.inputs = Stage.OVER, {}

    # Inside, without the lock.

    def _assemble(self, batch: Batch) -> bool:
        """Whether it could be done; if there was no memory for it, its calls run alone, which takes none."""
        started_at = self._clock()
        try:
            batch.inputs = self._buffers[batch.lane].assemble(batch.parts)
        except Exception as error:  # noqa: BLE001 - a lane answers for everything that its callers wait for
            self.fail(batch, error)
            return False
        batch.assemble_seconds = self._clock() - started_at
        return True

    def _answer(self, outcomes: list[tuple[Ticket, Outcome]]) -> None:
        """Settle futures on the loop: one wake-up for all of them."""
        if not outcomes:
            return
        try:
            self._loop.call_soon_threadsafe(self._deliver, outcomes)
        except RuntimeError:
            assert self._loop.is_closed()  # then nobody waits any more

    def _deliver(self, outcomes: list[tuple[Ticket, Outcome]]) -> None:
        for ticket, outcome in outcomes:
            self._count_out(ticket)
            if ticket.future.done():
                continue
            if isinstance(outcome, Answer):
                ticket.future.set_result(outcome)
            else:
                ticket.future.set_exception(outcome)

    def _count_out(self, ticket: Ticket) -> None:
        if not ticket.is_settled:
            ticket.is_settled = True
            self._calls -= 1

    def _expired(self, ticket: Ticket, now: float) -> ExpiredInQueue:
        return ExpiredInQueue((now - ticket.admitted_at) * 1000)

    def _model_failed(self, error: BaseException) -> ModelFailed:
        failed = ModelFailed(self._model, f"{type(error).__name__}: {error}")
        failed.__cause__ = error
        return failed


def _has_expired(part: Part, now: float) -> bool:
    return part.ticket.deadline is not None and part.ticket.deadline <= now


def _note(ticket: Ticket, batch: Batch, compute_seconds: float) -> None:
    ticket.assemble_seconds += batch.assemble_seconds
    ticket.compute_seconds += compute_seconds
    if batch.rows >= ticket.batch_rows:
        ticket.batch_rows, ticket.batch_calls = batch.rows, batch.calls


def _answer(ticket: Ticket, finished_at: float) -> Answer:
    shares = [part.outputs for part in ticket.parts if part.outputs is not None]
    assert len(shares) == len(ticket.parts)
    assert ticket.started_at is not None
    return Answer(
        outputs=join(shares),
        queue_seconds=ticket.started_at - ticket.admitted_at,
        assemble_seconds=ticket.assemble_seconds,
        compute_seconds=ticket.compute_seconds,
        finished_at=finished_at,
        batch_rows=ticket.batch_rows,
        batch_calls=ticket.batch_calls,
    )
