"""Builds everything, in order; opens it, drains it, and closes it in reverse.

The one place that knows all floors.  It decides nothing that a floor could decide: it passes settings down and values
up.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import grpc
import structlog

from headrace_server.database.database import Database
from headrace_server.datasets.catalog import Catalog
from headrace_server.devices import available_memory_bytes, find_devices
from headrace_server.errors import CannotStart, HeadraceError
from headrace_server.inference.engine import Engine
from headrace_server.inference.plans.planner import Planner
from headrace_server.inference.programs import Programs
from headrace_server.kernels.gate import ServingGate
from headrace_server.launchers.process import ProcessLauncher
from headrace_server.launchers.warm_pool import Warmth
from headrace_server.models.plan_records import PlanRecords
from headrace_server.models.registry import Registry
from headrace_server.names import is_id
from headrace_server.rpc.door import Door, bind_door, kind_of
from headrace_server.rpc.health import Health
from headrace_server.rpc.interceptor import Interceptor
from headrace_server.rpc.plane import Plane
from headrace_server.rpc.server import PUBLIC_SERVICES, bind_socket, private_server, public_server
from headrace_server.rpc.services.datasets import DatasetService
from headrace_server.rpc.services.inference import InferenceService
from headrace_server.rpc.services.models import ModelService
from headrace_server.rpc.services.open_inference import OpenInferenceService
from headrace_server.rpc.services.training import TrainingService
from headrace_server.rpc.services.worker import WorkerService
from headrace_server.rpc.status import Statuses
from headrace_server.settings import Settings
from headrace_server.storage.data_folder import DataFolder
from headrace_server.storage.local import LocalBlobStore
from headrace_server.telemetry.endpoint import MetricsEndpoint
from headrace_server.telemetry.metrics import Metrics
from headrace_server.trainers.catalogue import Families
from headrace_server.training.desk import TrainingDesk
from headrace_server.training.live_jobs import LiveJobs
from headrace_server.training.sinks.catalogue import prepare_sinks

if TYPE_CHECKING:
    from headrace_server.rpc.tracing import Tracing

QUIET_SECONDS = 0.1
"""Nobody called for so long: callers have noticed that the server is leaving."""
GATE_FILE = "gate"
WARM_FOLDER = ".warm"  # no id of a job begins with a dot
WARM_MEMORY_BYTES = 2 << 30
"""Memory that must be free for a worker to be kept ready: about four times what one takes."""
LAST_SECONDS = 2.0
"""What calls that are still there at the very end may take to leave, however long everything before took."""

log = structlog.get_logger()


class House:
    """One server.  `async with House(settings) as house:` opens it and closes it; drain it before it is closed."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.port = 0
        """The public port, once open."""
        self.metrics_port = -1
        """The port of the Prometheus endpoint, once open; -1 when there is none."""
        self.device_has_broken = asyncio.Event()
        """Set when a device answers nothing any more, until the process ends; `broken_device` says which."""
        self.broken_device = ""
        self._closing = asyncio.Event()
        self._hurry = asyncio.Event()
        self._health = Health(PUBLIC_SERVICES)
        self._interceptor = Interceptor(self.metrics, self._closing)
        self._rooms = AsyncExitStack()
        self._plane: Plane | None = None
        self._door: Door
        self._private: grpc.aio.Server
        self._engine: Engine
        self._desk: TrainingDesk

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def open(self) -> None:
        """Build everything, continue the jobs of an earlier process, load the models that are always served.

        Callers are answered from before the models are loaded; health says SERVING when all is done.  Raises
        CannotStart, after closing whatever was open already.
        """
        started_at = time.monotonic()
        try:
            await self._build()
            await self._desk.open()
            await self._private.start()
            await self._door.open()
            await self._serve_models()
        except BaseException:
            await self.close()
            raise
        self._health.open()
        log.info(
            "house.open",
            host=self.settings.server.host,
            port=self.port,
            door=self._door.kind,
            metrics_port=self.metrics_port,
            data=str(self.settings.data.absolute()),
            seconds=round(time.monotonic() - started_at, 3),
        )

    async def drain(self) -> None:
        """Stop taking calls, finish those there are, let workers go, and tell readers where to resume."""
        server = self.settings.server
        log.info("house.draining", drain_seconds=server.drain_seconds)
        self._health.latch()
        await self._within(server.pre_stop_seconds, asyncio.Event().wait())
        self._closing.set()
        if self._plane is not None:
            self._plane.drain()
        until = time.monotonic() + server.drain_seconds
        await asyncio.gather(
            self._within(server.drain_seconds, self._engine.drain()),
            self._within(None, self._desk.drain()),  # bounded by the grace period of its workers
        )
        self._health.close()
        # What arrives while gRPC stops is dropped, not refused: so first let callers hear that they are refused.
        streams = self._plane.num_turned_away if self._plane is not None else lambda: 0
        await self._within(LAST_SECONDS, self._interceptor.wait_until_quiet(QUIET_SECONDS, streams))
        await self._stop(self._door.close, max(LAST_SECONDS, until - time.monotonic()))
        await self._stop(self._private.stop, LAST_SECONDS)
        log.info("house.drained")

    def _device_has_broken(self, device: str) -> None:
        """Stop being ready at once; whoever runs the house drains it and ends the process."""
        log.error("house.device_broken", device=device)
        self.broken_device = device
        self._health.latch()
        self.device_has_broken.set()

    def hurry(self) -> None:
        """Cut short whatever draining waits for."""
        self._hurry.set()

    async def close(self) -> None:
        """Close everything that is open, in the reverse of the order it was opened in; harmless when repeated."""
        await self._rooms.aclose()

    async def _build(self) -> None:
        settings, rooms = self.settings, self._rooms
        folder = await asyncio.to_thread(DataFolder, settings.data)
        rooms.callback(folder.close)
        await self._open_metrics()
        database = await Database.open(settings.database.url or f"sqlite+aiosqlite:///{folder.database_file}")
        rooms.push_async_callback(database.close)
        store = LocalBlobStore(folder.store)
        await store.open()
        catalog = Catalog(database, store, settings.datasets, folder.scratch)
        registry = Registry(database, store, settings.models, folder.scratch)
        await catalog.sweep()
        await registry.sweep()
        self._registry = registry
        jobs = LiveJobs(database, store, catalog)
        devices = await asyncio.to_thread(find_devices)

        def planner(programs: Programs) -> Planner:
            records = PlanRecords(database)
            return Planner(store, records, programs, folder.scratch, settings.inference, devices)

        gate_file = folder.root / GATE_FILE
        try:
            gate = await asyncio.to_thread(ServingGate, gate_file)
        except OSError as error:
            raise CannotStart(f"the gate between serving and training cannot be made: {error}") from error
        rooms.callback(gate.close)
        self._engine = Engine(
            registry, store, settings.inference, self.metrics, folder.scratch, jobs=jobs, plans=planner, gate=gate
        )
        rooms.push_async_callback(self._engine.close)
        await self._engine.open()
        self._engine.watch(self._health.tell)
        self._engine.when_device_breaks(self._device_has_broken)
        launcher = ProcessLauncher(warmth=self._warmth(folder.work))
        rooms.push_async_callback(launcher.close)
        families = Families()
        sinks = await asyncio.to_thread(prepare_sinks, settings.training.sinks)
        self._desk = TrainingDesk(
            database,
            catalog,
            registry,
            store,
            launcher,
            families,
            settings.training,
            self.metrics,
            worker_address=f"unix:{folder.socket}",
            workspaces=folder.work,
            store_root=folder.store,
            gate=gate_file,
            sinks=sinks,
            quiet_seconds=settings.server.heartbeat_seconds,
            devices=lambda: devices,
            memory=self._engine,
        )
        rooms.push_async_callback(self._desk.close)
        interceptor = self._interceptor
        self._private = private_server(interceptor, WorkerService(self._desk, self._closing))
        rooms.push_async_callback(self._private.stop, 0)
        kind = kind_of(settings.server.door)
        tracing = await self._open_tracing()
        if kind == "native":
            self._plane = plane = Plane(Statuses(self.metrics), settings.inference.stream_window)
            self._engine.watch_routes(plane.turn)
            self._health.watch_server(plane.set_serving)
            self.metrics.native_calls.add_source(plane.counts)
            if tracing is not None:
                plane.trace(settings.telemetry.trace_ratio)
                tracing.follow(plane.native.take_spans)
        public = public_server(
            settings.server,
            interceptor,
            self._health,
            is_behind_door=kind == "native",
            interceptors=[tracing.interceptor()] if tracing is not None else [],
            training=TrainingService(self._desk, families),
            inference=InferenceService(
                self._engine, Statuses(self.metrics), self._closing, settings.inference.stream_window
            ),
            models=ModelService(registry, self._engine),
            datasets=DatasetService(catalog, self._desk),
            open_inference=OpenInferenceService(
                self._engine, registry, self._health, Statuses(self.metrics), self._closing, settings.inference
            ),
        )
        # Both are bound before anything is started: a port that is taken must be noticed before any job goes on.
        bind_socket(self._private, folder.socket)
        self._door = bind_door(kind, public, settings.server, folder.public_socket, self._plane)
        rooms.push_async_callback(self._door.close, 0)
        self.port = self._door.port

    def _warmth(self, work: Path) -> Warmth | None:
        training = self.settings.training
        if training.warm_workers == 0:
            return None
        return Warmth(
            work / WARM_FOLDER,
            training.warm_workers,
            training.warm_seconds,
            lambda: available_memory_bytes() > WARM_MEMORY_BYTES,
            self.metrics.warm_workers.set,
        )

    async def _open_metrics(self) -> None:
        telemetry = self.settings.telemetry
        if telemetry.metrics_port >= 0:
            endpoint = MetricsEndpoint(self.metrics.registry, telemetry.metrics_host, telemetry.metrics_port)
            self._rooms.push_async_callback(asyncio.to_thread, endpoint.close)
            self.metrics_port = endpoint.port

    async def _open_tracing(self) -> "Tracing | None":
        telemetry = self.settings.telemetry
        if not telemetry.trace_endpoint:
            return None
        try:
            from headrace_server.rpc.tracing import Tracing
        except ImportError as error:
            raise CannotStart(
                "telemetry.trace_endpoint needs OpenTelemetry: pip install 'headrace-server[tracing]'"
            ) from error
        tracing = await asyncio.to_thread(Tracing, telemetry.trace_endpoint, telemetry.trace_ratio)
        self._rooms.push_async_callback(asyncio.to_thread, tracing.close)
        return tracing

    async def _serve_models(self) -> None:
        for name, path in self.settings.models.serve.items():
            try:
                if not is_id(name):
                    raise CannotStart("a name is made of lower-case letters, digits and hyphens")
                version = await self._registry.serve_path(name, path)
                await self._engine.load(version.name)
            except HeadraceError as error:
                raise CannotStart(f"models.serve: {name} = {path}: {error}") from error

    async def _stop(self, stop: Callable[[float], Coroutine[Any, Any, None]], grace_seconds: float) -> None:
        await self._within(None, stop(grace_seconds))
        if self._hurry.is_set():
            await stop(0)

    async def _within(self, seconds: float | None, work: Coroutine[Any, Any, object]) -> None:
        """Wait for `work`, but not longer than this, and not when there is a hurry."""
        working = asyncio.ensure_future(work)
        hurrying = asyncio.ensure_future(self._hurry.wait())
        try:
            await asyncio.wait((working, hurrying), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            is_done = working.done()
            for task in (working, hurrying):
                task.cancel()
            await asyncio.wait((working, hurrying))
        if is_done:
            working.result()
