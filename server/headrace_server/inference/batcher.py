"""Groups waiting predictions into batches and returns each caller its own rows: the face of `native/batching`.

The event loop submits calls that fit the signature; lane threads take batches, run the model, and hand outputs or an
error back.  Calls of the native door wait in the same queues.  Knows nothing about models, devices or gRPC; what it
promises stands in `native/batching/batcher.h`.

`submit`, `leave`, `expire` and the futures belong to the event loop; `take`, `settle`, `settle_and_take` and `fail` to
lanes; the rest to both.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial

from headrace_server import _native
from headrace_server.errors import HeadraceError, ModelFailed, NoPermit
from headrace_server.inference.batch import BatchLimits
from headrace_server.inference.letters import deliver, mailbox_of
from headrace_server.inference.meters import new_meters
from headrace_server.kernels.gate import ServingGate
from headrace_server.tensors import Array, DataType, Tensors


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
        output_names: Sequence[str] = (),
        lanes: _native.LaneGroup | None = None,
        meters: _native.Meters | None = None,
    ) -> None:
        """`model` is for messages; `input_names` and `output_names` are those of the signature, in its order.

        `lanes` may serve other batchers too; by default it has as many of its own as the limits say, which go home when
        it is closed.  `meters` count what happens.
        """
        self._model = model
        self._input_names = tuple(input_names)
        self._limits = limits
        self._loop = loop
        self._mailbox = mailbox_of(loop)
        self._owns_lanes = lanes is None
        self.is_closed = False
        """Whether it answers nothing any more but what runs.  From any thread."""
        self._lanes = lanes or _native.LaneGroup(limits.num_lanes, None if clock is time.monotonic else clock)
        self.native = _native.Batcher(
            max_batch_rows=limits.max_batch_rows,
            max_batch_bytes=limits.max_batch_bytes,
            max_waiting_rows=limits.max_waiting_rows,
            max_waiting_bytes=limits.max_waiting_bytes,
            max_delay_seconds=limits.max_delay_seconds,
            is_batchable=is_batchable and bool(input_names),
            input_names=list(input_names),
            output_names=list(output_names),
            lanes=self._lanes,
            meters=meters or new_meters(),
            as_failure=partial(_as_failure, model),
        )

    # What the loop does.

    def submit(
        self, inputs: Tensors, nbytes: int, *, priority: int = 0, deadline: float | None = None
    ) -> _native.Ticket:
        """Admit a call whose inputs fit the signature; `nbytes` is their size.

        Inputs must not change until the ticket's future is done.  Whoever stops waiting for it calls `leave`.

        Raises NoPermit when too much waits or the deadline would be missed, or what it was closed by.
        """
        outcome = self.native.submit(inputs, nbytes, priority, deadline, self._loop.create_future(), self._mailbox)
        if isinstance(outcome, _native.Ticket):
            return outcome
        if outcome.kind == "closed":
            why = outcome.error
            assert why is not None
            raise why
        retry_after = timedelta(seconds=outcome.retry_after_seconds)
        raise NoPermit(self._model, outcome.waiting_rows, outcome.limit, retry_after, outcome.why)

    def leave(self, ticket: _native.Ticket) -> bool:
        """Forget a call whose caller has gone; harmless when it is over.  Returns whether it was never run."""
        never_ran = self.native.leave(ticket)
        future = ticket.future
        if not future.cancel() and not future.cancelled():
            future.exception()  # nobody will ask for it: do not let it be reported as forgotten
        return never_ran

    def expire(self, ticket: _native.Ticket) -> None:
        """Answer a call with ExpiredInQueue at once, unless it runs or is over.  Deadlines are kept without it."""
        self.native.expire(ticket)
        deliver(self._mailbox)

    async def wait_until_idle(self) -> None:
        """Wait until no admitted call, of whatever door, is without an answer: each has a deadline, or can leave."""
        future: asyncio.Future[object] = self._loop.create_future()
        self.native.when_idle(future, self._mailbox)
        await future

    def run_alone(self) -> None:
        """Never put two calls together, nor slice one.  Only before the first call."""
        self.native.run_alone()

    # What anybody does.

    @property
    def calls_in_flight(self) -> int:
        """Admitted calls without an answer."""
        return self.native.calls_in_flight

    @property
    def waiting_rows(self) -> int:
        """Rows that wait for their first run."""
        return self.native.waiting_rows

    def drain(self) -> None:
        """From now on nobody waits for company.  Calls are still taken: whoever owns the door closes it."""
        self.native.drain()

    def close(self, why: Callable[[], BaseException], *, abandon: bool = False) -> None:
        """Answer everything that waits with a new `why()` each and send the lanes home; what runs may still end well.

        With `abandon`, what runs is answered too: its lane will not come back.
        """
        self.native.close(why, getattr(why(), "reason", HeadraceError.reason), abandon)
        self.is_closed = True
        if self._owns_lanes:
            self._lanes.close()
            return
        for lane in range(self._lanes.num_lanes):  # so that each lets go of what it has of this one
            self._lanes.ring(lane)

    # What lanes do.

    def take(self, lane: int = 0, timeout: float | None = None) -> _native.Batch | None:
        """Wait for work and return the next batch, assembled; None when closed, or after `timeout` seconds of no work.

        Batches of models with a program of their own are run meanwhile.

        The batch must be given back through `settle`, `settle_and_take` or `fail`.
        """
        return self._lanes.take(lane, timeout)

    def settle(
        self, batch: _native.Batch, outputs: Mapping[str, Array], compute_seconds: float, variant: int = 0
    ) -> None:
        """Give each caller of the batch its rows of the outputs, which must stay as they are.

        Outputs without exactly one row for each input row make the batch fail.  `variant` says which of the model's
        programs ran.
        """
        self.native.settle(batch, outputs, compute_seconds, variant)

    def settle_and_take(
        self, batch: _native.Batch, outputs: Mapping[str, Array], compute_seconds: float, variant: int = 0
    ) -> _native.Batch | None:
        """Settle, and take the next batch of the same lane; the GIL is let go of once for both."""
        return self.native.settle_and_take(batch, outputs, compute_seconds, variant)

    def fail(self, batch: _native.Batch, error: BaseException) -> None:
        """Give up on a batch.  Its calls run again, each alone, unless it held only one.

        A HeadraceError reaches the caller as it is, and anything else as ModelFailed.
        """
        self.native.fail(batch, error)

    def set_input_types(self, lane: int, types: Mapping[str, DataType]) -> None:
        """What a lane's program takes, where that is not what callers send; FP32, FP16, BF16 and FP64 are converted."""
        self.native.set_input_types(lane, [types.get(name) for name in self._input_names])

    def set_program(self, lane: int, program: _native.Program | None, gate: ServingGate | None = None) -> None:
        """Let a lane run batches with this, inside the gate, while it waits in `take`, which no longer returns them.

        Except those that hold objects or arrays in strides, and those that the program has failed with (`failure`).
        On the lane's own thread.
        """
        self.native.set_program(lane, program, None if gate is None else gate.native)


def _as_failure(model: str, problem: BaseException | str) -> HeadraceError:
    """What the caller of a failed call gets to see."""
    if isinstance(problem, HeadraceError):
        return problem
    if isinstance(problem, str):
        return ModelFailed(model, problem)
    failed = ModelFailed(model, f"{type(problem).__name__}: {problem}")
    failed.__cause__ = problem
    return failed
