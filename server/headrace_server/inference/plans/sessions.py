"""Sessions of a decision: what a lane runs, whichever plan its batch needs, with as many threads as the load allows.

The programs of a decision are opened once, however many lanes run them; a lane has a view of its own.
"""

import threading
from collections.abc import Callable
from pathlib import Path

from headrace_server.inference.backends.backend import Session
from headrace_server.inference.plans.choice import Decision
from headrace_server.inference.plans.opening import open_plan
from headrace_server.inference.plans.plan import CPU, Plan
from headrace_server.inference.plans.planner import Planned
from headrace_server.models.version import ArtifactFormat
from headrace_server.precision import Precision
from headrace_server.tensors import Signature, Tensors


class PlannedBackend:
    """Opens the plans of a decision; the backend of one resident.

    `is_busy` says, from any thread, whether a lane that is about to run has company: calls that wait, or other lanes
    that run.  Then it uses few threads, and all of them when it is alone.
    """

    def __init__(self, planned: Planned, is_busy: Callable[[], bool]) -> None:
        self._planned = planned
        self._is_busy = is_busy
        self._lock = threading.Lock()
        self._opened: dict[tuple[str, int], Session] = {}
        self._num_lanes = 0
        main = planned.decision.plans[-1]
        self.name: str = main.runtime.value
        self.format: ArtifactFormat = main.source

    @property
    def num_lanes(self) -> int:
        """How many lanes make the most of the machine: one for each run at the same time."""
        return self._planned.decision.busy_sessions

    def open(self, path: Path, signature: Signature) -> "PlannedSession":
        """The session of one more lane.  A decision knows its own files, whatever `path` is.  Raises what plans do."""
        with self._lock:  # the first lane opens, the others wait for it
            self._num_lanes += 1
            try:
                sessions = {
                    (plan.name, threads): self._session(plan, threads, signature)
                    for plan in self._planned.decision.plans
                    for threads in thread_counts(self._planned.decision, plan)
                }
            except BaseException:
                self._leave()
                raise
        return PlannedSession(self._planned.decision, sessions, self._is_busy, self._close)

    def _session(self, plan: Plan, num_threads: int, signature: Signature) -> Session:
        key = (plan.name, num_threads)
        if key not in self._opened:
            self._opened[key] = open_plan(
                plan,
                self._planned.files[plan.name],
                signature,
                num_threads=num_threads,
                num_runs=self._planned.decision.busy_sessions,
            )
        return self._opened[key]

    def _close(self) -> None:
        with self._lock:
            self._leave()

    def _leave(self) -> None:
        self._num_lanes -= 1
        if self._num_lanes == 0:
            opened, self._opened = self._opened, {}
            for session in opened.values():
                session.close()


def thread_counts(decision: Decision, plan: Plan) -> tuple[int, ...]:
    """With how many threads a plan may be run, few and many."""
    if plan.device != CPU:
        return (1,)
    return tuple(sorted({decision.busy_threads, decision.lone_threads}))


class PlannedSession:
    """One lane's view of the sessions of a decision.  Used by the thread that opened it."""

    def __init__(
        self,
        decision: Decision,
        sessions: dict[tuple[str, int], Session],
        is_busy: Callable[[], bool],
        closed: Callable[[], None],
    ) -> None:
        self._decision = decision
        self._sessions = sessions
        self._is_busy = is_busy
        self._closed = closed
        self.variants: tuple[tuple[Precision, str], ...] = tuple(
            (plan.precision, plan.device) for plan in decision.plans
        )
        """Precision and device of each plan that may run, in the order of `variant`."""
        self.variant = len(decision.plans) - 1
        """Which of them ran last."""

    @property
    def device(self) -> str:
        """Of what ran last; of the largest batches before anything has run."""
        return self.variants[self.variant][1]

    @property
    def precision(self) -> Precision:
        """Of what ran last; of the largest batches before anything has run."""
        return self.variants[self.variant][0]

    def run(self, inputs: Tensors) -> Tensors:
        """Run the plan for so many rows.  Raises what the plan raises."""
        rows = next((len(array) for array in inputs.values() if array.ndim), 1)
        plan = self._decision.plan_for(rows)
        self.variant = self._decision.plans.index(plan)
        counts = thread_counts(self._decision, plan)
        threads = counts[0] if self._is_busy() else counts[-1]
        return self._sessions[plan.name, threads].run(inputs)

    def close(self) -> None:
        """Let go; the last lane closes the programs."""
        self._sessions = {}
        self._closed()
