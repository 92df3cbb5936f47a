"""Brings loaded versions from the plan they can be run with at once to the best one, in the background.

A version begins to answer with its registered program, or with the best plan that is known of it where that is opened
as quickly.  If its policy wants more, what is not known is measured, the chosen plan is opened and warmed up beside the
old one, one reference is swapped, and the old one leaves when the calls that it has taken are answered.  What is best
so far is swapped in already while plans are compiled that may be better.  The same happens when the policy changes.
Whatever fails on the way leaves the old one in its place; what fails for want of memory is tried again later, less and
less often.  Belongs to the event loop.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Protocol

import structlog

from headrace_server.errors import DeviceOutOfMemory, HeadraceError
from headrace_server.inference.errands import Errands
from headrace_server.inference.plans.choice import Decision
from headrace_server.inference.plans.measurement import Measurement
from headrace_server.inference.plans.planner import Planned, Planner
from headrace_server.inference.resident import Resident
from headrace_server.inference.slot import Key
from headrace_server.models.registry import Registry
from headrace_server.models.serving import ServingOptions
from headrace_server.models.version import ModelVersion
from headrace_server.precision import Precision, PrecisionPolicy
from headrace_server.tensors import Tensors

MOST_PROBLEMS = 1024
RETRY_SECONDS = 5.0
"""After which memory is asked for again; twice as long each time."""
MOST_RETRY_SECONDS = 300.0
log = structlog.get_logger()


class PlanState(StrEnum):
    """How far the plan of a version is; names as in the contract."""

    REGISTERED = "REGISTERED"
    """Its registered program is all that its policy asks for."""
    MEASURING = "MEASURING"
    """It is being measured or opened; the plan before it runs meanwhile."""
    CHOSEN = "CHOSEN"
    """It was measured, and what was chosen runs whenever the version is loaded."""
    FAILED = "FAILED"
    """It could not be measured or opened; the plan before it runs on."""
    UNKNOWN = "UNKNOWN"
    """It was not measured here; loading it begins that."""


@dataclass(frozen=True, slots=True)
class PlanReport:
    """What is known of the plans of a version."""

    version: ModelVersion
    state: PlanState
    wanted: Precision
    policy: PrecisionPolicy
    problem: str
    """Why it FAILED; else empty."""
    running: tuple[str, ...]
    """The names of the plans that run now; empty while it is not loaded."""
    measurement: Measurement | None
    decision: Decision | None
    """What the policy makes of the measurement; None without one."""


class Slots(Protocol):
    """The part of Residency that swaps."""

    def resident(self, key: Key) -> Resident | None:
        """What runs a version; None while it is not ready."""
        ...

    async def exchange(self, old: Resident, open_new: Callable[[], Awaitable[Resident]]) -> Resident | None:
        """Open what takes the place of `old`; None when `old` is not what runs any more."""
        ...

    @property
    def versions(self) -> list[ModelVersion]:
        """All that are ready or being loaded."""
        ...


class Improving:
    """The plans of the loaded versions of one engine."""

    def __init__(
        self,
        planner: Planner,
        registry: Registry,
        slots: Slots,
        errands: Errands,
        open_resident: Callable[[ModelVersion, Planned | None], Awaitable[Resident]],
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        """`open_resident` gets a version and its plan, None for the registered program as it is.

        A plan that there is no room for is tried again after `retry_seconds`, then after twice as long, and so on.
        """
        self.planner = planner
        self._registry = registry
        self._slots = slots
        self._errands = errands
        self._open_resident = open_resident
        self._under_way: set[Key] = set()
        self._again: set[Key] = set()
        self._problems: dict[Key, str] = {}
        self._retry_seconds = retry_seconds
        self._delays: dict[Key, float] = {}
        """How long those will wait next who find no room."""
        self._waiting: set[Key] = set()
        registry.watch_serving(self._policy_changed)

    async def recall(self, version: ModelVersion) -> Planned | None:
        """The plan to load a version with, one that makes nobody wait for it; None for its registered program."""
        policy = await self._policy(version)
        if self._is_as_registered(policy):
            return None
        return await self.planner.recall(version, policy, is_enough_so_far=True, is_prompt=True)

    def follow(self, version: ModelVersion) -> None:
        """Bring a version that is loaded to its best plan, in the background.  Harmless when it is there already."""
        key = version.key
        if key in self._under_way:
            self._again.add(key)
        else:
            self._under_way.add(key)
            self._errands.start(self._improve(version, key))

    async def measure_again(self, version: ModelVersion) -> PlanReport:
        """Measure a version, whatever was measured before, and let a loaded one follow; returns when it has.

        Raises ModelFailed when it cannot be measured.
        """
        policy = await self._policy(version)
        planned = await self.planner.measure(version, policy, again=True)
        await self.planner.release(planned)
        key = version.key
        if self._slots.resident(key) is not None and key not in self._under_way:
            self._under_way.add(key)
            await self._errands.start(self._improve(version, key))
        return await self.report(version)

    async def calibrate(self, version: ModelVersion, inputs: Tensors) -> int:
        """Judge a version by these rows from now on; returns how many are kept.  Raises Unsupported, StorageFull."""
        kept = await self.planner.calibrate(version, inputs)
        if self._slots.resident(version.key) is not None:
            self.follow(version)
        return kept

    async def report(self, version: ModelVersion) -> PlanReport:
        """What is known of the plans of a version."""
        policy = await self._policy(version)
        key = version.key
        measurement = await self.planner.find(version)
        resident = self._slots.resident(key)
        decision = self.planner.decide(measurement, policy) if measurement is not None else None
        problem = self._problems.get(key, "")
        if key in self._under_way:
            state = PlanState.MEASURING
        elif problem:
            state = PlanState.FAILED
        elif self._is_as_registered(policy):
            state = PlanState.REGISTERED
        else:
            state = PlanState.CHOSEN if decision is not None else PlanState.UNKNOWN
        return PlanReport(
            version=version,
            state=state,
            wanted=self.planner.wanted(policy),
            policy=policy,
            problem=problem,
            running=resident.plan_names if resident is not None else (),
            measurement=measurement,
            decision=decision,
        )

    # Inside.

    async def _policy(self, version: ModelVersion) -> PrecisionPolicy:
        return (await self._registry.serving(version.model)).precision

    def _is_as_registered(self, policy: PrecisionPolicy) -> bool:
        """Whether nobody asked for anything but the registered program; FP32 that was asked for is arranged, too."""
        return policy.precision is None and self.planner.wanted(policy) is Precision.FP32

    def _policy_changed(self, model: str, _: ServingOptions) -> None:
        for version in self._slots.versions:
            if version.model == model:
                self.follow(version)

    async def _improve(self, version: ModelVersion, key: Key) -> None:
        try:
            while True:
                self._again.discard(key)
                await self._improve_once(version, key)
                if key not in self._again:
                    break
        except HeadraceError as error:
            self._failed(key, str(error))
            log.warning("plans.not_improved", model=str(version.name), problem=str(error))
            if isinstance(error, DeviceOutOfMemory):
                self._try_later(version, key)
        except Exception as error:  # a runtime may raise anything while it opens a plan: the old one runs on
            self._failed(key, f"{type(error).__name__}: {error}")
            log.warning("plans.not_improved", model=str(version.name), exc_info=error)
        finally:
            self._under_way.discard(key)

    def _failed(self, key: Key, problem: str) -> None:
        self._problems[key] = problem
        if len(self._problems) > MOST_PROBLEMS:
            del self._problems[next(iter(self._problems))]

    def _try_later(self, version: ModelVersion, key: Key) -> None:
        if key in self._waiting:
            return
        seconds = self._delays.get(key, self._retry_seconds)
        self._delays[key] = min(2 * seconds, MOST_RETRY_SECONDS)
        self._waiting.add(key)
        self._errands.start(self._try_after(seconds, version, key))

    async def _try_after(self, seconds: float, version: ModelVersion, key: Key) -> None:
        try:
            await asyncio.sleep(seconds)
        finally:
            self._waiting.discard(key)
        if self._slots.resident(key) is None:
            self._delays.pop(key, None)
        elif key in self._problems:  # else something has gone well meanwhile
            self.follow(version)

    async def _improve_once(self, version: ModelVersion, key: Key) -> None:
        policy = await self._policy(version)
        planned = None
        if not self._is_as_registered(policy):
            planned = await self.planner.recall(version, policy)
            if planned is None:
                so_far = await self.planner.recall(version, policy, is_enough_so_far=True)
                if so_far is not None:
                    await self._try_so_far(version, key, so_far)
                planned = await self.planner.measure(version, policy, partial(self._try_so_far, version, key))
        self._problems.pop(key, None)
        await self._swap(version, key, planned)
        self._delays.pop(key, None)

    async def _try_so_far(self, version: ModelVersion, key: Key, planned: Planned) -> None:
        """Let the best so far run while measuring goes on; if it cannot, the old one does."""
        if key in self._again:  # another policy is wanted by now
            await self.planner.release(planned)
            return
        try:
            await self._swap(version, key, planned)
        except Exception as error:  # a runtime may raise anything while it opens a plan
            log.warning("plans.not_improved", model=str(version.name), exc_info=error)

    async def _swap(self, version: ModelVersion, key: Key, planned: Planned | None) -> None:
        """Open a plan beside what runs, and let it take over.  It is let go of when there is nothing to do."""
        old = self._slots.resident(key)
        if old is None or _is_the_same(old, planned):  # it has left meanwhile, or there is nothing to do
            if planned is not None:
                await self.planner.release(planned)
            return
        new = await self._slots.exchange(old, lambda: self._open_resident(version, planned))
        if new is not None:
            log.info("plans.swapped", model=str(version.name), plans=list(new.plan_names), before=list(old.plan_names))


def _is_the_same(resident: Resident, planned: Planned | None) -> bool:
    if resident.planned is None or planned is None:
        return resident.planned is None and planned is None
    one, other = resident.planned.decision, planned.decision
    return (one.buckets, one.lone_threads, one.busy_threads, one.busy_sessions, one.max_batch_rows) == (
        other.buckets, other.lone_threads, other.busy_threads, other.busy_sessions, other.max_batch_rows,
    ) and resident.planned.digests == planned.digests  # fmt: skip
