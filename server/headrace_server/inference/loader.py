"""Knows how to open one version: with its registered program and a backend, or with the plan that was chosen for it.

Decides nothing: what is loaded and when is the business of `residency.py`, which plan that of `improving.py`.
"""

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable, Sequence

import structlog

from headrace_server.errors import InvalidSpec, Unsupported, Violation
from headrace_server.inference.backends.backend import Backend
from headrace_server.inference.batch import BatchLimits
from headrace_server.inference.meters import Meters
from headrace_server.inference.plans.plan import CPU
from headrace_server.inference.plans.planner import Planned, Planner
from headrace_server.inference.plans.sessions import PlannedBackend
from headrace_server.inference.processors import Processors
from headrace_server.inference.programs import Program, Programs
from headrace_server.inference.resident import Resident
from headrace_server.inference.shared_lanes import LanesOfDevices, SharedLanes, shares_lanes
from headrace_server.kernels.gate import ServingGate
from headrace_server.models.serving import LaneSharing, ServingOptions
from headrace_server.models.snapshot import Snapshot
from headrace_server.models.version import ModelVersion
from headrace_server.telemetry.metrics import Metrics

Died = Callable[[Resident], None]
log = structlog.get_logger()


class Loader:
    """Opens and closes the residents of one engine."""

    def __init__(
        self,
        programs: Programs,
        backends: Sequence[Backend],
        limits: BatchLimits,
        metrics: Metrics,
        meters_of: Callable[[ModelVersion], Meters],
        planner: Planner | None,
        serving_of: Callable[[str], Awaitable[ServingOptions]],
        gate: ServingGate | None = None,
        lane_sharing: LaneSharing = LaneSharing.AUTO,
        lanes_per_device: int = 1,
    ) -> None:
        """`backends` in the order of preference; `serving_of` tells the options of a model.

        Every batch passes through `gate`.  `lane_sharing` counts for models whose owner has not said.
        """
        self._lane_sharing = lane_sharing
        self._shared_lanes = LanesOfDevices(lanes_per_device)
        self._processors = Processors()
        self._serving_of = serving_of
        self._gate = gate
        self._programs = programs
        self._backends = tuple(backends)
        self._limits = limits
        self._metrics = metrics
        self._meters_of = meters_of
        self._planner = planner

    def choose(self, version: ModelVersion, name: str) -> Backend:
        """The backend with this name, or the first that has a program to run.  Raises InvalidSpec, Unsupported."""
        if name and all(backend.name != name for backend in self._backends):
            known = ", ".join(repr(backend.name) for backend in self._backends)
            raise InvalidSpec([Violation("backend", f"{name!r} is not one of {known}")])
        for backend in self._backends:
            if name in ("", backend.name) and version.artifact(backend.format) is not None:
                return backend
        formats = ", ".join(sorted({artifact.format for artifact in version.artifacts})) or "none"
        what = f"backend {name!r} for {version.name}" if name else f"running {version.name}"
        raise Unsupported(what, f"its files are {formats}")

    def expected_bytes(self, version: ModelVersion) -> int:
        """A guess, for a version that was never loaded: the size of its largest file."""
        return max((artifact.size_bytes for artifact in version.artifacts), default=0)

    async def open(self, version: ModelVersion, backend_name: str, died: Died) -> Resident:
        """Open the registered program.  Raises why it cannot be opened."""
        backend = self.choose(version, backend_name)
        artifact = version.artifact(backend.format)
        assert artifact is not None
        limits, lanes = await self._lanes_of(version, self._limits, CPU)
        program = await self._programs.fetch(version, artifact)
        meters = self._meters_of(version)
        resident = Resident(version, program, backend, limits, meters, died, gate=self._gate, lanes=lanes)
        return await self._opened(resident, lambda: self._programs.release(program))

    async def open_planned(self, version: ModelVersion, planned: Planned, died: Died) -> Resident:
        """Open the plans of a decision.  It is released when this fails, and when the resident is closed."""
        assert self._planner is not None
        planner, decision = self._planner, planned.decision
        backend = PlannedBackend(planned, processors=self._processors)
        main = decision.plans[-1]
        program = Program(planned.files[main.name].source, planned.digests[main.name], None)
        measured = dataclasses.replace(
            self._limits, max_batch_rows=decision.max_batch_rows, num_lanes=decision.busy_sessions
        )
        device = next((plan.device for plan in decision.plans if plan.device != CPU), CPU)
        limits, lanes = await self._lanes_of(version, measured, device)
        meters = self._meters_of(version)
        resident = Resident(version, program, backend, limits, meters, died, planned, self._gate, lanes)
        backend.num_waiting = lambda: resident.batcher.waiting_rows
        return await self._opened(resident, lambda: planner.release(planned))

    async def close(self, resident: Resident) -> None:
        """Close a resident, and let go of its files."""
        await resident.close()
        if resident.planned is not None:
            assert self._planner is not None
            await self._planner.release(resident.planned)
        else:
            await self._programs.release(resident.program)
        log.info("inference.unloaded", model=str(resident.version.name), backend=resident.backend)

    async def close_lanes(self) -> None:
        """End the lanes that models share; all residents are closed."""
        if not await asyncio.to_thread(self._shared_lanes.close):
            log.warning("inference.shared_lane_stuck")

    async def _lanes_of(
        self, version: ModelVersion, limits: BatchLimits, device: str
    ) -> tuple[BatchLimits, SharedLanes | None]:
        """These limits with as many lanes as the owner of the model wants, or the lanes of the device.

        A job's checkpoint has no owner who could say.
        """
        serving = ServingOptions() if isinstance(version, Snapshot) else await self._serving_of(version.model)
        if serving.num_lanes is not None:
            limits = dataclasses.replace(limits, num_lanes=serving.num_lanes)
        is_shared = shares_lanes(serving, self._lane_sharing, is_gpu=device != CPU)
        return limits, self._shared_lanes.of(device) if is_shared else None

    async def _opened(self, resident: Resident, release: Callable[[], Awaitable[None]]) -> Resident:
        started_at = time.monotonic()
        try:
            await resident.open()
        except BaseException:
            await release()
            raise
        seconds = time.monotonic() - started_at
        self._metrics.load_seconds.labels(resident.backend).observe(seconds)
        log.info(
            "inference.loaded",
            model=str(resident.version.name),
            backend=resident.backend,
            plans=list(resident.plan_names),
            seconds=seconds,
        )
        return resident
