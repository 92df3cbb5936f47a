"""Answers predictions with the versions of a registry: what is loaded, how it runs, and the way of every call.

Builds the parts of the predict path and is their face to the doors; see `predict_path.py` for the way itself.  Knows no
transport.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from headrace_server.errors import (
    Draining,
    Unsupported,
)
from headrace_server.inference import ensembles
from headrace_server.inference.backends.backend import Backend, DeviceBroken
from headrace_server.inference.backends.onnxruntime import OnnxRuntimeBackend
from headrace_server.inference.backends.torch_export import TorchExportBackend
from headrace_server.inference.batch import BatchLimits
from headrace_server.inference.cache.opening import open_cache
from headrace_server.inference.check import check
from headrace_server.inference.copies import Copies
from headrace_server.inference.errands import Errands
from headrace_server.inference.improving import Improving, PlanReport
from headrace_server.inference.live.jobs import Jobs
from headrace_server.inference.live.snapshots import Snapshots
from headrace_server.inference.live.template_maker import TemplateMaker
from headrace_server.inference.live.templates import Templates
from headrace_server.inference.loader import Loader
from headrace_server.inference.meters import MetersByVersion
from headrace_server.inference.plans.planner import Planned, Planner
from headrace_server.inference.predict_path import PredictPath
from headrace_server.inference.prediction import (
    LoadedModel,
    ModelStatus,
    Prediction,
    Provenance,
    Readiness,
    Timing,
)
from headrace_server.inference.programs import Programs
from headrace_server.inference.residency import Residency
from headrace_server.inference.resident import Resident
from headrace_server.inference.routes import Publish, Routes
from headrace_server.inference.tally import Statistics
from headrace_server.kernels.gate import ServingGate
from headrace_server.memory import Ledger
from headrace_server.models.registry import Registry
from headrace_server.models.serving import LaneSharing, ServingOptions
from headrace_server.models.snapshot import Snapshot
from headrace_server.models.version import ModelVersion
from headrace_server.names import ModelName
from headrace_server.settings import InferenceSettings
from headrace_server.storage.blob_store import BlobStore
from headrace_server.telemetry.metrics import Metrics
from headrace_server.telemetry.predictions import PredictionCounts
from headrace_server.tensors import Tensors

__all__ = ["Engine", "LoadedModel", "ModelStatus", "Prediction", "Provenance", "Readiness", "Timing"]


log = structlog.get_logger()


class Engine:
    """Answers predictions with the versions of a registry."""

    def __init__(
        self,
        registry: Registry,
        store: BlobStore,
        settings: InferenceSettings,
        metrics: Metrics,
        scratch: Path,
        backends: Sequence[Backend] | None = None,
        jobs: Jobs | None = None,
        plans: Callable[[Programs], Planner] | None = None,
        ledger: Ledger | None = None,
        gate: ServingGate | None = None,
    ) -> None:
        """`scratch` is a folder for copies of programs.  `backends` in the order of preference; by default all.

        `jobs` shows the checkpoints of jobs that may answer; none do without.  `plans` makes the planner; without one,
        versions run with their registered programs.  Every batch passes through `gate`, where trainings wait meanwhile.
        """
        self._registry = registry
        self._settings = settings
        self._metrics = metrics
        programs = Programs(store, scratch)
        self._cache = open_cache(settings, metrics)
        self._meters = MetersByVersion()
        self._errands = Errands()
        ledger = ledger or Ledger(settings.memory_bytes)
        threads = settings.threads_per_lane
        limits = BatchLimits(
            max_batch_rows=settings.max_batch_rows,
            max_batch_bytes=settings.max_batch_bytes,
            max_waiting_rows=settings.max_waiting_rows,
            max_waiting_bytes=settings.max_waiting_bytes,
            max_delay_seconds=settings.max_delay_seconds,
            num_lanes=settings.lanes_per_model,
        )
        planner = plans(programs) if plans is not None else None
        self._loader = Loader(
            programs,
            backends or (OnnxRuntimeBackend(threads), TorchExportBackend(threads)),
            limits,
            metrics,
            self._meters.of,
            planner,
            registry.serving,
            gate,
            LaneSharing(settings.lane_sharing),
            settings.lanes_per_device,
            Copies(scratch / "copies", settings.copies_bytes, self._errands, lambda: ledger.free_for_jobs(0)),
        )
        self._residency = Residency(
            self._open,
            self._loader.close,
            self._errands,
            max_loaded=settings.max_loaded_versions,
            load_seconds=settings.load_seconds,
            most_waiting_calls=settings.max_waiting_rows,
            most_waiting_bytes=settings.max_waiting_bytes,
            occupied=metrics.loaded_versions.set,
            ledger=ledger,
            expected_bytes=self._loader.expected_bytes,
        )
        registry.watch_serving(self._serving_changed)
        self._residency.when_loaded(self._has_loaded)
        self.improving: Improving | None = None
        """The plans of versions; None where only registered programs run."""
        if planner is not None:
            self.improving = Improving(
                planner,
                registry,
                self._residency,
                self._errands,
                lambda version, planned: self._open_with(version, "", planned, self._residency.discard),
            )
        self._routes = Routes(registry.line)
        registry.watch_lines(self._routes.line_changed)
        self._residency.announce(self._routes.add, self._routes.remove)
        self._snapshots: Snapshots | None = None
        if jobs is not None:
            templates = Templates(jobs, store, TemplateMaker(settings.load_seconds), scratch)
            self._snapshots = Snapshots(jobs, templates, self._residency, self._errands)
        self._path = PredictPath(registry, self._residency, self._cache, self._meters, metrics, self._snapshots)
        metrics.predictions.add_source(self._counts)
        self._tell_of_broken_device: Callable[[str], None] = lambda device: None
        self._num_calls = 0
        self._is_draining = False
        self._is_idle = asyncio.Event()
        self._is_idle.set()

    async def predict(
        self,
        name: ModelName,
        inputs: Tensors,
        *,
        output_names: Sequence[str] = (),
        deadline: float | None = None,
        priority: int = 0,
    ) -> Prediction:
        """Run a model once; `deadline` is on time.monotonic().  Inputs must not change meanwhile.

        Raises InvalidTensor, NoPermit, ExpiredInQueue, ModelNotFound, ModelLoading, ModelFailed, DeviceOutOfMemory,
        Draining, or why the version could not be loaded.
        """
        if self._is_draining:
            raise Draining
        self._num_calls += 1
        self._is_idle.clear()
        try:
            return await self._path.predict(name, inputs, output_names, deadline, priority)
        finally:
            self._num_calls -= 1
            if self._num_calls == 0:
                self._is_idle.set()

    async def load(self, name: ModelName, backend: str = "") -> LoadedModel:
        """Load a version, with one backend or the server's choice, and return when it answers.

        Tries again what failed before.  Raises why it could not be loaded, InvalidSpec for an unknown backend,
        Unsupported for one that the version has no program for, ModelNotFound, Draining.
        """
        if self._is_draining:
            raise Draining
        version = await self._path.find(name)
        if version.ensemble is not None:
            if backend:
                raise Unsupported(f"backend {backend!r} for {version.name}", "it is an ensemble: load its members")
            for member in await ensembles.members_of(version, self._registry.resolve):
                (await self._residency.borrow(member, again=True)).give_back()
            return LoadedModel(version, ensembles.BACKEND)
        if backend:
            self._loader.choose(version, backend)
        resident = await self._residency.borrow(version, backend=backend, again=True)
        resident.give_back()
        return LoadedModel(version, resident.backend)

    async def unload(self, name: ModelName) -> ModelVersion:
        """Unload a version when the calls that it has taken are finished.  Raises ModelNotLoaded, ModelNotFound."""
        version = await self._path.find(name)
        if version.ensemble is not None:
            raise Unsupported(f"unloading {version.name}", "it is an ensemble: unload its members")
        await self._residency.unload(version)
        return version

    async def make_room(self, nbytes: int) -> int:
        """Have models that nobody uses leave until a training job may take so much; returns what is missing then."""
        return await self._residency.make_room(nbytes)

    async def plan(self, name: ModelName) -> PlanReport:
        """How the version that a name means is run, and why.  Raises ModelNotFound, Unsupported."""
        version, improving = await self._plannable(name)
        return await improving.report(version)

    async def measure(self, name: ModelName) -> PlanReport:
        """Measure a version anew, and let it follow if it is loaded.  Takes minutes.

        Raises ModelNotFound, Unsupported, ModelFailed when it cannot be measured.
        """
        version, improving = await self._plannable(name)
        return await improving.measure_again(version)

    async def calibrate(self, name: ModelName, inputs: Tensors) -> int:
        """Set the rows that plans of a version are judged with; returns how many are kept.

        Raises ModelNotFound, Unsupported, InvalidTensor, StorageFull.
        """
        version, improving = await self._plannable(name)
        inputs = version.signature.encode_text(inputs)
        await check(version, inputs, ())
        return await improving.calibrate(version, inputs)

    async def status(self, name: ModelName) -> ModelStatus:
        """How the version that a name means is.  Raises ModelNotFound."""
        version = await self._path.find(name)
        if version.ensemble is None:
            return self.look(version)
        members = await ensembles.members_of(version, self._registry.resolve)
        return ensembles.status_of(version, [self.look(member) for member in members])

    def look(self, version: ModelVersion) -> ModelStatus:
        """How a version is in itself; an ensemble, which is nothing to be loaded, is ready.

        `status` says how its members are.
        """
        if version.ensemble is not None:
            return ModelStatus(version, Readiness.READY, None, 0, ensembles.BACKEND)
        readiness, failure, resident = self._residency.look(version)
        calls = resident.batcher.calls_in_flight if resident is not None else 0
        return ModelStatus(version, readiness, failure, calls, resident.backend if resident is not None else "")

    def loaded(self) -> list[ModelVersion]:
        """The versions that are loaded or being loaded."""
        return self._residency.versions

    def statistics(self) -> dict[ModelName, Statistics]:
        """What was counted for each version that was loaded or asked since the start; the last few thousand of them."""
        return self._meters.statistics()

    def watch(self, listener: Callable[[str, bool], None]) -> None:
        """Call `listener` with `models/{model}` and whether any version of it is loaded, whenever that changes."""
        self._residency.watch(listener)

    def when_device_breaks(self, listener: Callable[[str], None]) -> None:
        """Call `listener` with a device that answers nothing any more: only a new process can use it again."""
        self._tell_of_broken_device = listener

    async def open(self) -> None:
        """Remove what an earlier process has left, and get the cache ready; to be called before anything is asked."""
        await self._cache.open()
        if self.improving is not None:
            await self.improving.planner.open()
        if self._snapshots is not None:
            await self._snapshots.sweep()

    def watch_routes(self, listener: Publish) -> None:
        """Call `listener` with every name that means a version which is ready, now and whenever that changes."""
        self._routes.watch(listener)

    async def drain(self) -> None:
        """Refuse new predictions with Draining and wait until those admitted are finished."""
        self._is_draining = True
        residents = self._residency.residents
        for resident in residents:
            resident.batcher.drain()
        await self._is_idle.wait()
        for resident in residents:  # calls of the native door
            await resident.batcher.wait_until_idle()

    async def close(self) -> None:
        """Answer what still waits with Draining, and end all lanes and loads."""
        self._is_draining = True
        await self._errands.close()
        await self._residency.close()
        await self._loader.close_lanes()
        await self._cache.close()

    # Inside.

    async def _open(self, version: ModelVersion, backend: str, died: Callable[[Resident], None]) -> Resident:
        if not isinstance(version, Snapshot):
            self._serving_changed(version.model, await self._registry.serving(version.model))
        planned = None
        if self.improving is not None and not backend and not isinstance(version, Snapshot):
            planned = await self.improving.recall(version)
        return await self._open_with(version, backend, planned, died)

    async def _open_with(
        self, version: ModelVersion, backend: str, planned: Planned | None, died: Callable[[Resident], None]
    ) -> Resident:
        def has_died(resident: Resident) -> None:
            died(resident)
            if isinstance(resident.cause_of_death, DeviceBroken):
                self._tell_of_broken_device(resident.cause_of_death.device)

        if planned is not None:
            resident = await self._loader.open_planned(version, planned, has_died)
        else:
            resident = await self._loader.open(version, backend, has_died)
        if self._is_draining:
            resident.batcher.drain()
        return resident

    async def _plannable(self, name: ModelName) -> tuple[ModelVersion, Improving]:
        version = await self._path.find(name)
        if self.improving is None or version.ensemble is not None or isinstance(version, Snapshot):
            raise Unsupported(f"planning {name}", "only registered versions of single models have plans")
        return version, self.improving

    def _serving_changed(self, model: str, serving: ServingOptions) -> None:
        (self._residency.pinned.add if serving.is_pinned else self._residency.pinned.discard)(model)

    def _has_loaded(self, version: ModelVersion, is_chosen: bool) -> None:
        if self.improving is not None and not is_chosen and not isinstance(version, Snapshot):
            self.improving.follow(version)

    def _counts(self) -> list[PredictionCounts]:
        """For the metrics, on the thread that serves them."""
        waiting: Counter[tuple[str, str]] = Counter()
        for resident in self._residency.residents:
            waiting[resident.version.labels] += resident.batcher.waiting_rows
        return self._meters.counts(waiting)
