"""Sessions of a decision: what a lane runs, whichever plan its batch needs, with as many threads as the load allows.

The programs of a decision are opened once, however many lanes run them; a lane has a view of its own, and on a GPU a
stream of its own.  A lane that has company (calls wait, or another lane runs) uses few threads; one that is alone uses
all that help; one beside which another model runs uses no helpers.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

from headrace_server import _native
from headrace_server.errors import DeviceOutOfMemory
from headrace_server.inference.backends.backend import ChoosesThreads, HasProgram, Session, SharesWeights
from headrace_server.inference.backends.one_thread import OnOneThread
from headrace_server.inference.nicely import run_nicely
from headrace_server.inference.plans.choice import Decision
from headrace_server.inference.plans.opening import open_plan
from headrace_server.inference.plans.plan import CPU, Plan, Runtime
from headrace_server.inference.plans.planner import Planned
from headrace_server.inference.plans.trimming import without_padding
from headrace_server.inference.plans.trying import batch_of
from headrace_server.inference.processors import Company, Processors, running
from headrace_server.inference.warm_up import gives_way
from headrace_server.memory import free_device_bytes
from headrace_server.models.version import ArtifactFormat
from headrace_server.precision import Precision
from headrace_server.tensors import Signature, Tensors


class PlannedBackend:
    """Opens the plans of a decision; the backend of one resident."""

    def __init__(
        self,
        planned: Planned,
        free_bytes: Callable[[str], int] = free_device_bytes,
        processors: Processors | None = None,
    ) -> None:
        """`free_bytes` says what a GPU has left.  `processors` are shared with other models; None: they are its own."""
        self.planned = planned
        self._free_bytes = free_bytes
        self._processors = processors or Processors()
        self._runs = self._processors.runs_of_a_model()
        self.num_waiting: Callable[[], int] = lambda: 0
        """How much waits for the resident, from any thread; whoever makes the resident says."""
        self._lock = threading.Lock()
        self._opened: dict[tuple[str, int], Session] = {}
        self._twins: list[Session] = []
        self._program: _native.Program | None = None
        self._num_lanes = 0
        main = planned.decision.plans[-1]
        self.name: str = main.runtime.value
        self.format: ArtifactFormat = main.source

    def open(self, path: Path, signature: Signature) -> "PlannedSession":
        """The session of one more lane.  A decision knows its own files, whatever `path` is.  Raises what plans do."""
        decision = self.planned.decision
        with self._lock:  # the first lane opens, the others wait for it
            self._num_lanes += 1
            try:
                sessions = {
                    (plan.name, threads): self._session(plan, threads, signature)
                    for plan in decision.plans
                    for threads in thread_counts(decision, plan)
                }
            except BaseException:
                self._leave()
                raise
            if self._program is None and not decision.mask_input:
                self._program = _program_of(decision, sessions, self._runs)
            program = self._program
        return PlannedSession(decision, signature, sessions, self._running, self._close, program)

    def _session(self, plan: Plan, num_threads: int, signature: Signature) -> Session:
        key = (plan.name, num_threads)
        opened = self._opened.get(key)
        if opened is not None and not isinstance(opened, SharesWeights):
            return opened
        if opened is not None:
            session = opened.twin()
            self._twins.append(session)
        else:
            session = self._opened[key] = self._open(plan, num_threads, signature)
        warm = partial(self._warm_up, session, plan, signature)
        run_nicely(warm) if num_threads == 1 and gives_way(session) else warm()
        return session

    def _open(self, plan: Plan, num_threads: int, signature: Signature) -> Session:
        self._check_room(plan)
        narrow = self._opened.get((plan.name, 1))
        if narrow is None or not isinstance(narrow, ChoosesThreads):
            files, num_runs = self.planned.files[plan.name], self.planned.decision.busy_sessions
            return open_plan(plan, files, signature, num_threads=num_threads, num_runs=num_runs)
        return OnOneThread(narrow.with_threads(num_threads), self._processors.thread)

    def _warm_up(self, session: Session, plan: Plan, signature: Signature) -> None:
        """The first run of each size pays for what is lazy; on a GPU the second one records its graph."""
        before = 0
        for bucket in self.planned.decision.buckets:
            if bucket.plan == plan:
                sizes = [bucket.max_rows] if plan.device == CPU else _powers_of_two(before, bucket.max_rows)
                for rows in sizes:
                    for _ in range(1 if plan.device == CPU else 2):
                        session.run(batch_of(self.planned.rows, rows, signature))
            before = bucket.max_rows

    def _check_room(self, plan: Plan) -> None:
        """Raise DeviceOutOfMemory, with what is missing, when a GPU has not what the plan took while it was tried.

        Memory of the host is the business of whoever decides what is loaded.
        """
        trial = self.planned.measurement.trial(plan.name)
        if plan.device == CPU or trial is None:
            return
        missing_bytes = trial.resident_bytes - self._free_bytes(plan.device)
        if missing_bytes > 0:
            raise DeviceOutOfMemory(plan.device, missing_bytes=missing_bytes)

    @contextmanager
    def _running(self) -> Iterator[Company]:
        """Around a run; what company it has."""
        with running(self._runs) as company:
            yield Company.OWN if company is Company.NONE and self.num_waiting() > 0 else company

    def _close(self) -> None:
        with self._lock:
            self._leave()

    def _leave(self) -> None:
        self._num_lanes -= 1
        if self._num_lanes == 0:
            sessions = [*self._twins, *reversed(self._opened.values())]  # first those that share what others opened
            self._opened, self._twins, self._program = {}, [], None
            for session in sessions:
                session.close()


def _program_of(
    decision: Decision, sessions: Mapping[tuple[str, int], Session], runs: _native.Runs
) -> _native.Program | None:
    """What runs the plans without Python, for all lanes together; None unless all of them can be run so."""
    buckets = []
    for bucket in decision.buckets:
        programs = []
        for company in (Company.OTHERS, Company.OWN, Company.NONE):
            session = sessions[bucket.plan.name, threads_of(decision, bucket.plan, company)]
            program = session.program if isinstance(session, HasProgram) else None
            if program is None:
                return None
            programs.append(program)
        beside_others, busy, lone = programs
        buckets.append((bucket.max_rows, decision.plans.index(bucket.plan), beside_others, busy, lone))
    return _native.Choice(buckets, runs)


def _powers_of_two(before: int, largest: int) -> list[int]:
    """Of 1, 2, 4… those above `before`, up to the first that is not smaller than `largest`."""
    return [1 << exponent for exponent in range(before.bit_length(), (largest - 1).bit_length() + 1)]


def thread_counts(decision: Decision, plan: Plan) -> tuple[int, ...]:
    """With how many threads a plan may be run, ascending; torch may run what it has opened with any number."""
    if plan.device != CPU:
        return (1,)
    least = 1 if plan.runtime is Runtime.TORCH else min(decision.busy_threads, decision.lone_threads)
    return tuple(sorted({least, decision.busy_threads, decision.lone_threads}))


def threads_of(decision: Decision, plan: Plan, company: Company) -> int:
    """With how many threads a plan is run in such company."""
    counts = thread_counts(decision, plan)
    if company is Company.OTHERS or plan.device != CPU:
        return counts[0]
    return decision.busy_threads if company is Company.OWN else decision.lone_threads


class PlannedSession:
    """One lane's view of the sessions of a decision.  Used by the thread that opened it."""

    def __init__(
        self,
        decision: Decision,
        signature: Signature,
        sessions: dict[tuple[str, int], Session],
        running: Callable[[], AbstractContextManager[Company]],
        closed: Callable[[], None],
        program: _native.Program | None = None,
    ) -> None:
        """`program` does what `run` does, without Python."""
        self.program = program
        self._decision = decision
        self._signature = signature
        self._sessions = sessions
        self._running = running
        self._closed = closed
        self.variants: tuple[Plan, ...] = decision.plans
        """Everything that may run."""
        self.provenance_index = len(decision.plans) - 1
        """Which of them ran last; what runs the largest batches before anything has run."""

    @property
    def device(self) -> str:
        """Where the last run was."""
        return self.variants[self.provenance_index].device

    @property
    def precision(self) -> Precision:
        """What the last run computed in."""
        return self.variants[self.provenance_index].precision

    def run(self, inputs: Tensors) -> Tensors:
        """Run the plan for so many rows.  Raises what the plan raises."""
        if self._decision.mask_input:
            inputs = without_padding(inputs, self._decision.mask_input, self._signature)
        rows = next((len(array) for array in inputs.values() if array.ndim), 1)
        plan = self._decision.plan_for(rows)
        self.provenance_index = self.variants.index(plan)
        with self._running() as company:
            return self._sessions[plan.name, threads_of(self._decision, plan, company)].run(inputs)

    def judge(self, failure: Exception) -> Exception:
        """What `run` raises when the program has raised this; all of it runs on the same device."""
        sessions = (session for session in self._sessions.values() if isinstance(session, HasProgram))
        return next(sessions).judge(failure)

    def close(self) -> None:
        """Let go; the last lane closes the programs."""
        self._sessions, self.program = {}, None
        self._closed()
