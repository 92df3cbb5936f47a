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
from headrace_server.inference.backends.onnxruntime import Copy, OnnxRuntimeBackend
from headrace_server.inference.batch import BatchLimits
from headrace_server.inference.copies import Copies
from headrace_server.inference.meters import Meters
from headrace_server.inference.plans.plan import CPU, Runtime
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
        copies: Copies | None = None,
    ) -> None:
        """`backends` in the order of preference; `serving_of` tells the options of a model.

        Every batch passes through `gate`.  `lane_sharing` counts for models whose owner has not said.  What is opened
        again is opened from `copies`.
        """
        self._copies = copies
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
        if isinstance(backend, OnnxRuntimeBackend) and (copy := self._copy_of(program)) is not None:
            backend = backend.with_copy(copy)
        meters = self._meters_of(version)
        resident = Resident(version, program, backend, limits, meters, died, gate=self._gate, lanes=lanes)
        opened = await self._opened(resident, lambda: self._programs.release(program))
        if isinstance(backend, OnnxRuntimeBackend) and not isinstance(version, Snapshot):  # those do not come back
            self._make_copy(program)
        return opened

    async def open_planned(self, version: ModelVersion, planned: Planned, died: Died) -> Resident:
        """Open the plans of a decision.  It is released when this fails, and when the resident is closed."""
        assert self._planner is not None
        planner, decision = self._planner, planned.decision
        programs = self._programs_of(planned)
        files = {
            name: dataclasses.replace(planned.files[name], copy=self._copy_of(programs[name])) for name in programs
        }
        planned = dataclasses.replace(planned, files={**planned.files, **files})
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
        opened = await self._opened(resident, lambda: planner.release(planned))
        for each in programs.values():
            self._make_copy(each)
        return opened

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

    def _programs_of(self, planned: Planned) -> dict[str, Program]:
        """What ONNX Runtime runs of a decision on the CPU, by the name of the plan."""
        return {
            plan.name: Program(files.prepared or files.source, planned.digests[plan.name], None)
            for plan in planned.decision.plans
            if plan.runtime is Runtime.ONNXRUNTIME and plan.device == CPU
            for files in (planned.files[plan.name],)
        }

    def _copy_of(self, program: Program) -> Copy | None:
        return self._copies.find(program.digest) if self._copies is not None else None

    def _make_copy(self, program: Program) -> None:
        if self._copies is not None:
            self._copies.make(program)

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
