"""The predict path: from a name and arrays to a prediction.

resolve the name → check the inputs against the signature → borrow the version, loading it if need be → take a permit in
its batcher → a lane runs the batch → timing and provenance.  Knows no transport.
"""

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import structlog

from headrace_server.errors import (
    Draining,
    HeadraceError,
    JobNotFound,
    Unsupported,
)
from headrace_server.inference import ensembles
from headrace_server.inference.backends.backend import Backend, DeviceBroken
from headrace_server.inference.backends.onnxruntime import OnnxRuntimeBackend
from headrace_server.inference.backends.torch_export import TorchExportBackend
from headrace_server.inference.batch import Answer, BatchLimits
from headrace_server.inference.cache.opening import open_cache
from headrace_server.inference.check import check
from headrace_server.inference.errands import Errands
from headrace_server.inference.improving import Improving, PlanReport
from headrace_server.inference.live.jobs import Jobs
from headrace_server.inference.live.snapshots import Snapshots
from headrace_server.inference.live.template_maker import TemplateMaker
from headrace_server.inference.live.templates import Templates
from headrace_server.inference.loader import Loader
from headrace_server.inference.meters import Meters
from headrace_server.inference.plans.planner import Planned, Planner
from headrace_server.inference.prediction import (
    LoadedModel,
    ModelStatus,
    Prediction,
    Provenance,
    Readiness,
    Staleness,
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
from headrace_server.models.serving import ServingOptions
from headrace_server.models.snapshot import LABELS, Snapshot
from headrace_server.models.version import ModelVersion
from headrace_server.names import ModelName, SnapshotName
from headrace_server.settings import InferenceSettings
from headrace_server.storage.blob_store import BlobStore
from headrace_server.telemetry.metrics import Metrics
from headrace_server.telemetry.predictions import PredictionCounts
from headrace_server.tensors import Tensors

__all__ = ["Engine", "LoadedModel", "ModelStatus", "Prediction", "Provenance", "Readiness", "Timing"]

MOST_METERS = 4096

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
            self._meters_of,
            planner,
            registry.serving,
            gate,
        )
        self._errands = Errands()
        self._residency = Residency(
            self._open,
            self._loader.close,
            self._errands,
            max_loaded=settings.max_loaded_versions,
            load_seconds=settings.load_seconds,
            most_waiting_calls=settings.max_waiting_rows,
            most_waiting_bytes=settings.max_waiting_bytes,
            occupied=metrics.loaded_versions.set,
            ledger=ledger or Ledger(settings.memory_bytes),
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
                self._loader.close,
            )
        self._routes = Routes(registry.line)
        registry.watch_lines(self._routes.line_changed)
        self._residency.announce(self._routes.add, self._routes.remove)
        self._snapshots: Snapshots | None = None
        if jobs is not None:
            templates = Templates(jobs, store, TemplateMaker(settings.load_seconds), scratch)
            self._snapshots = Snapshots(jobs, templates, self._residency, self._errands)
        self._meters: OrderedDict[tuple[str, str], Meters] = OrderedDict()
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
            return await self._ask(name, inputs, output_names, deadline, priority)
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
        version = await self._find(name)
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
        version = await self._find(name)
        if version.ensemble is not None:
            raise Unsupported(f"unloading {version.name}", "it is an ensemble: unload its members")
        await self._residency.unload(version)
        return version

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
        version = await self._find(name)
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
        return {
            ModelName(model, int(version)): meters.statistics()
            for (model, version), meters in self._meters.items()
            if (model, version) != LABELS  # all checkpoints of all jobs together, under no name
        }

    def watch(self, listener: Callable[[str, bool], None]) -> None:
        """Call `listener` with `models/{model}` and whether any version of it is loaded, whenever that changes."""
        self._residency.watch(listener)

    def when_device_breaks(self, listener: Callable[[str], None]) -> None:
        """Call `listener` with a device that answers nothing any more: only a new process can use it again."""
        self._tell_of_broken_device = listener

    async def open(self) -> None:
        """Remove what an earlier process has left, and get the cache ready; to be called before anything is asked."""
        await self._cache.open()
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
        await self._cache.close()

    # Inside.

    async def _find(self, name: ModelName, deadline: float | None = None) -> ModelVersion:
        if not isinstance(name, SnapshotName):
            return await self._registry.resolve(name)
        if self._snapshots is None:
            raise JobNotFound(str(name.job))
        return await self._snapshots.find(name, deadline)

    def _staleness(self, version: ModelVersion) -> Staleness | None:
        if not isinstance(version, Snapshot) or self._snapshots is None:
            return None
        staleness = self._snapshots.staleness(version)
        self._metrics.snapshot_lag_steps.observe(staleness.steps)
        self._metrics.snapshot_age_seconds.observe(staleness.age_seconds)
        return staleness

    async def _ask(
        self,
        name: ModelName,
        inputs: Tensors,
        output_names: Sequence[str],
        deadline: float | None,
        priority: int,
        depth: int = 1,
    ) -> Prediction:
        """Run a model once; `depth` counts the ensembles that it is in, and itself."""
        version = await self._find(name, deadline)
        inputs = version.signature.encode_text(inputs)
        meters = self._meters_of(version)
        asked_at = time.monotonic()
        try:
            if version.ensemble is not None:
                prediction = await self._predict_together(version, inputs, output_names, deadline, priority, depth)
                meters.answered(prediction.timing, _num_rows(version, inputs), time.monotonic() - asked_at)
                return prediction
            nbytes = await check(version, inputs, output_names)
            resident = self._residency.borrow_ready(version)
            if resident is None:
                resident = await self._residency.borrow(version, deadline=deadline, nbytes=nbytes)
        except BaseException as error:
            meters.ended(_outcome(error), time.monotonic() - asked_at)
            raise
        try:
            compute = partial(self._compute, resident, meters, inputs, nbytes, output_names, deadline, priority)
            if isinstance(version, Snapshot):
                return await compute()
            caching = (await self._registry.serving(version.model)).cache
            return await self._cache.answer(caching, version, resident.provenances, inputs, output_names, compute)
        finally:
            resident.give_back()

    async def _predict_together(
        self,
        version: ModelVersion,
        inputs: Tensors,
        output_names: Sequence[str],
        deadline: float | None,
        priority: int,
        depth: int,
    ) -> Prediction:
        ensembles.check_depth(version, depth)
        await check(version, inputs, output_names)
        ask = partial(self._ask, depth=depth + 1)
        return await ensembles.predict(version, inputs, output_names, deadline=deadline, priority=priority, ask=ask)

    def _prediction(
        self, resident: Resident, answer: Answer, output_names: Sequence[str], meters: Meters
    ) -> Prediction:
        outputs = answer.outputs
        respond_seconds = time.monotonic() - answer.finished_at
        meters.responded(respond_seconds)
        return Prediction(
            version=resident.version,
            outputs={name: outputs[name] for name in output_names} if output_names else outputs,
            timing=Timing(
                queue_seconds=answer.queue_seconds,
                assemble_seconds=answer.assemble_seconds,
                compute_seconds=answer.compute_seconds,
                respond_seconds=respond_seconds,
                batch_rows=answer.batch_rows,
                batch_calls=answer.batch_calls,
            ),
            provenance=resident.provenances[answer.variant],
            staleness=self._staleness(resident.version),
        )

    async def _compute(
        self,
        resident: Resident,
        meters: Meters,
        inputs: Tensors,
        nbytes: int,
        output_names: Sequence[str],
        deadline: float | None,
        priority: int,
    ) -> Prediction:
        answer = await _run(resident, inputs, nbytes, deadline, priority)
        return self._prediction(resident, answer, output_names, meters)

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
        version = await self._find(name)
        if self.improving is None or version.ensemble is not None or isinstance(version, Snapshot):
            raise Unsupported(f"planning {name}", "only registered versions of single models have plans")
        return version, self.improving

    def _serving_changed(self, model: str, serving: ServingOptions) -> None:
        (self._residency.pinned.add if serving.is_pinned else self._residency.pinned.discard)(model)

    def _has_loaded(self, version: ModelVersion, is_chosen: bool) -> None:
        if self.improving is not None and not is_chosen and not isinstance(version, Snapshot):
            self.improving.follow(version)

    def _meters_of(self, version: ModelVersion) -> Meters:
        key = version.labels
        meters = self._meters.get(key)
        if meters is None:
            meters = self._meters[key] = Meters(version)
            if len(self._meters) > MOST_METERS:
                self._meters.popitem(last=False)
        return meters

    def _counts(self) -> list[PredictionCounts]:
        """For the metrics, on the thread that serves them."""
        waiting: Counter[tuple[str, str]] = Counter()
        for resident in self._residency.residents:
            waiting[resident.version.labels] += resident.batcher.waiting_rows
        return [meters.counts(waiting[labels]) for labels, meters in list(self._meters.items())]


def _num_rows(version: ModelVersion, inputs: Tensors) -> int:
    """The rows of inputs that fit; everything is one row to a model that takes no rows."""
    if not version.signature.is_batchable:
        return 1
    return next((array.shape[0] for array in inputs.values()), 1)


def _outcome(error: BaseException) -> str:
    """What is counted for a call that no batcher has seen."""
    if isinstance(error, HeadraceError):
        return error.reason
    return "left" if isinstance(error, asyncio.CancelledError) else HeadraceError.reason


async def _run(resident: Resident, inputs: Tensors, nbytes: int, deadline: float | None, priority: int) -> Answer:
    """Let a call be computed.  From here on it is the batcher that counts it."""
    ticket = resident.batcher.submit(inputs, nbytes, priority=priority, deadline=deadline)
    try:
        answer: Answer = await ticket.future
        return answer
    except asyncio.CancelledError:
        resident.batcher.leave(ticket)
        raise
