"""One loaded version: its batcher, the lanes that serve it, and how many calls have borrowed it."""

import asyncio
import time
from collections.abc import Callable
from functools import partial

import structlog

from headrace_server.errors import Draining
from headrace_server.inference.backends.backend import Backend, Session
from headrace_server.inference.batch import BatchLimits
from headrace_server.inference.batcher import Batcher
from headrace_server.inference.lane import Lane
from headrace_server.inference.meters import Meters
from headrace_server.inference.nicely import run_nicely
from headrace_server.inference.plans.planner import Planned
from headrace_server.inference.prediction import Provenance
from headrace_server.inference.programs import Program
from headrace_server.inference.shared_lanes import Guest, SharedLanes
from headrace_server.inference.warm_up import gives_way, warm_up
from headrace_server.kernels.gate import ServingGate
from headrace_server.models.version import ModelVersion

JOIN_SECONDS = 5.0

log = structlog.get_logger()


class Resident:
    """A version in memory.  Belongs to the event loop; what lanes call is marked."""

    def __init__(
        self,
        version: ModelVersion,
        program: Program,
        backend: Backend,
        limits: BatchLimits,
        meters: Meters,
        died: Callable[["Resident"], None],
        planned: Planned | None = None,
        gate: ServingGate | None = None,
        lanes: SharedLanes | None = None,
    ) -> None:
        """`died` is called on the loop when a lane has ended by a fault: every call has been answered then.

        `planned` is what `backend` opens; None for the registered program as it is.  Every batch passes through `gate`.
        `lanes` are shared with other models; None: it has lanes of its own, as many as `limits` say.
        """
        self.version = version
        self.program = program
        self.backend = backend.name
        self.planned = planned
        self.cause_of_death: BaseException | None = None
        """What a lane has died of."""
        self._backend = backend
        self._died = died
        self._gate = gate
        self._loop = asyncio.get_running_loop()
        self.batcher = Batcher(
            str(version.name),
            [spec.name for spec in version.signature.inputs],
            limits,
            is_batchable=version.signature.is_batchable,
            loop=self._loop,
            output_names=[spec.name for spec in version.signature.outputs],
            lanes=lanes.native if lanes is not None else None,
            meters=meters.native,
        )
        self._start = Lane.start if lanes is None else lanes.start
        self._num_lanes = limits.num_lanes if lanes is None else lanes.num_lanes
        self._lanes: list[Lane | Guest] = []
        self._opened: list[asyncio.Future[Session]] = []
        self._rows_are_independent = True
        self._meters = meters
        self._borrowed_at = time.time()
        self._num_borrowed = 0
        self._is_free = asyncio.Event()
        self._is_free.set()
        self.provenances: tuple[Provenance, ...]
        """What may run; an answer says by its `variant` which of them did."""

    async def open(self) -> None:
        """Start the lanes and wait until each has a warm session.  Raises what a backend raises; then it is closed."""
        name = f"{self.version.model.rpartition('/')[2]}-{self.version.version}"
        try:
            for number in range(self._num_lanes):
                self._opened.append(self._loop.create_future())
                self._lanes.append(self._start(number, name, self._open_session, self.batcher, self, self._gate))
            sessions = await asyncio.gather(*self._opened)
        except BaseException:
            # Lanes that are still opening close what they open as soon as they see that the batcher is closed.
            self.batcher.close(Draining)
            raise
        finally:
            for opened in self._opened:  # the others, when the first has failed: nobody asks them any more
                if opened.done() and not opened.cancelled():
                    opened.exception()
        if self.version.signature.is_batchable and not self._rows_are_independent:
            log.warning("inference.rows_depend_on_each_other", model=str(self.version.name))
            self.batcher.run_alone()
        self.provenances = self._provenances(sessions[0])

    @property
    def provenance(self) -> Provenance:
        """What runs the largest batches."""
        return self.provenances[-1]

    @property
    def plan_names(self) -> tuple[str, ...]:
        """What runs: the names of the chosen plans, or of the backend for the registered program as it is."""
        if self.planned is None:
            return (self.backend,)
        return tuple(plan.name for plan in self.planned.decision.plans)

    @property
    def is_in_use(self) -> bool:
        """Whether calls of any door use it."""
        return self._num_borrowed > 0 or self.batcher.calls_in_flight > 0

    @property
    def last_used_at(self) -> float:
        """When it was last borrowed, or a call of any door ended, in seconds since 1970."""
        return max(self._borrowed_at, self._meters.last_call_at)

    def borrow(self) -> "Resident":
        """Keep it loaded until `give_back`."""
        self._borrowed_at = time.time()
        self._num_borrowed += 1
        self._is_free.clear()
        return self

    def give_back(self) -> None:
        """End a borrow."""
        self._num_borrowed -= 1
        if self._num_borrowed == 0:
            self._is_free.set()

    async def wait_until_free(self) -> None:
        """Wait for the calls that use it, those of the native door too: each has its own deadline, or can leave."""
        await self._is_free.wait()
        await self.batcher.wait_until_idle()

    async def close(self) -> None:
        """Answer what waits, let what runs finish for a while, and end the lanes."""
        self.batcher.close(Draining)
        if not await asyncio.to_thread(self._join):
            log.warning("inference.lane_stuck", model=str(self.version.name), seconds=JOIN_SECONDS)
            self.batcher.close(Draining, abandon=True)

    def _provenances(self, session: Session) -> tuple[Provenance, ...]:
        lineage = self.version.lineage
        origin = (lineage.training_job, lineage.step, lineage.checkpoint_digest)
        if self.planned is None:
            return (Provenance(self.program.digest, self.backend, session.precision, session.device, *origin),)
        return tuple(
            Provenance(self.planned.digests[plan.name], plan.runtime, plan.precision, plan.device, *origin)
            for plan in self.planned.decision.plans
        )

    def _join(self) -> bool:
        limit = time.monotonic() + JOIN_SECONDS
        return all(lane.join(max(limit - time.monotonic(), 0)) for lane in self._lanes)

    # What lanes call, on their own threads.

    def _open_session(self) -> Session:
        session = self._backend.open(self.program.path, self.version.signature)
        warm = partial(warm_up, session, self.version.signature)
        try:
            if not (run_nicely(warm) if gives_way(session) else warm()):
                self._rows_are_independent = False
        except BaseException:
            session.close()
            raise
        return session

    def has_opened(self, lane: int, session: Session) -> None:
        """The session of a lane is warm."""
        self._on_loop(_settle, self._opened[lane], session, None)

    def could_not_open(self, lane: int, error: BaseException) -> None:
        """A lane has no session."""
        self._on_loop(_settle, self._opened[lane], None, error)

    def has_died(self, lane: int, error: BaseException) -> None:
        """A lane has ended by a fault."""
        log.error("inference.lane_died", model=str(self.version.name), lane=lane, exc_info=error)
        self.cause_of_death = error
        self._on_loop(self._died, self)

    def _on_loop(self, act: Callable[..., None], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(act, *args)
        except RuntimeError:
            assert self._loop.is_closed()  # then nobody waits any more


def _settle(opened: "asyncio.Future[Session]", session: Session | None, error: BaseException | None) -> None:
    if opened.done():
        return
    if session is not None:
        opened.set_result(session)
    else:
        assert error is not None
        opened.set_exception(error if isinstance(error, Exception) else RuntimeError(repr(error)))
