"""Knows how to open one version: with its registered program and a backend, or with the plan that was chosen for it.

Decides nothing: what is loaded and when is the business of `residency.py`, which plan that of `improving.py`.
"""

import dataclasses
import time
from collections.abc import Awaitable, Callable, Sequence

import structlog

from headrace_server.errors import InvalidSpec, Unsupported, Violation
from headrace_server.inference.backends.backend import Backend
from headrace_server.inference.batch import BatchLimits
from headrace_server.inference.meters import Meters
from headrace_server.inference.plans.planner import Planned, Planner
from headrace_server.inference.plans.sessions import PlannedBackend
from headrace_server.inference.programs import Program, Programs
from headrace_server.inference.resident import Resident
from headrace_server.kernels.gate import ServingGate
from headrace_server.models.serving import ServingOptions
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
    ) -> None:
        """`backends` in the order of preference; `serving_of` tells the options of a model.

        Every batch passes through `gate`.
        """
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
        limits = await self._limits_of(version, self._limits)
        program = await self._programs.fetch(version, artifact)
        resident = Resident(version, program, backend, limits, self._meters_of(version), died, gate=self._gate)
        return await self._opened(resident, lambda: self._programs.release(program))

    async def open_planned(self, version: ModelVersion, planned: Planned, died: Died) -> Resident:
        """Open the plans of a decision.  It is released when this fails, and when the resident is closed."""
        assert self._planner is not None
        planner, decision = self._planner, planned.decision
        backend = PlannedBackend(planned)
        main = decision.plans[-1]
        program = Program(planned.files[main.name].source, planned.digests[main.name], None)
        measured = dataclasses.replace(
            self._limits, max_batch_rows=decision.max_batch_rows, num_lanes=decision.busy_sessions
        )
        limits = await self._limits_of(version, measured)
        resident = Resident(version, program, backend, limits, self._meters_of(version), died, planned, self._gate)
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

    async def _limits_of(self, version: ModelVersion, limits: BatchLimits) -> BatchLimits:
        """These limits, with as many lanes as the owner of the model wants; a job's checkpoint has no such owner."""
        if isinstance(version, Snapshot):
            return limits
        wanted = (await self._serving_of(version.model)).num_lanes
        return limits if wanted is None else dataclasses.replace(limits, num_lanes=wanted)

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
