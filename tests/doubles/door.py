"""The real public server in front of doubles: only what is behind the door is made up.

Whichever door is built here holds the port, unless a test asks for one of them.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import grpc

from headrace.datasets.v1.dataset_service_pb2_grpc import DatasetServiceStub
from headrace.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from headrace.models.v1.model_service_pb2_grpc import ModelServiceStub
from headrace.training.v1.training_service_pb2_grpc import TrainingServiceStub
from headrace_server.rpc import door as doors
from headrace_server.rpc.health import Health
from headrace_server.rpc.interceptor import Interceptor
from headrace_server.rpc.open_inference.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub
from headrace_server.rpc.server import PUBLIC_SERVICES, public_server
from headrace_server.rpc.services.datasets import DatasetService
from headrace_server.rpc.services.inference import InferenceService
from headrace_server.rpc.services.models import ModelService
from headrace_server.rpc.services.open_inference import OpenInferenceService
from headrace_server.rpc.services.training import TrainingService
from headrace_server.rpc.status import Statuses
from headrace_server.settings import InferenceSettings, ServerSettings
from headrace_server.telemetry.metrics import Metrics
from headrace_server.trainers.catalogue import Families
from tests.doubles.echo_engine import EchoEngine
from tests.doubles.job_desk import JobDesk
from tests.doubles.shelves import MemoryCatalog, MemoryRegistry

if TYPE_CHECKING:
    from headrace.datasets.v1.dataset_service_pb2_grpc import DatasetServiceAsyncStub
    from headrace.inference.v1.inference_service_pb2_grpc import InferenceServiceAsyncStub
    from headrace.models.v1.model_service_pb2_grpc import ModelServiceAsyncStub
    from headrace.training.v1.training_service_pb2_grpc import TrainingServiceAsyncStub
    from headrace_server.rpc.open_inference.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceAsyncStub


@dataclass
class Door:
    """A server with doubles behind it, and a channel to it."""

    desk: JobDesk
    engine: EchoEngine
    catalog: MemoryCatalog
    registry: MemoryRegistry
    metrics: Metrics
    health: Health
    closing: asyncio.Event
    holder: doors.Door
    port: int
    channel: grpc.aio.Channel
    training: "TrainingServiceAsyncStub" = field(init=False)
    inference: "InferenceServiceAsyncStub" = field(init=False)
    models: "ModelServiceAsyncStub" = field(init=False)
    datasets: "DatasetServiceAsyncStub" = field(init=False)
    open_inference: "GRPCInferenceServiceAsyncStub" = field(init=False)

    def __post_init__(self) -> None:
        self.training = TrainingServiceStub(self.channel)
        self.inference = InferenceServiceStub(self.channel)
        self.models = ModelServiceStub(self.channel)
        self.datasets = DatasetServiceStub(self.channel)
        self.open_inference = GRPCInferenceServiceStub(self.channel)


@asynccontextmanager
async def open_door(desk: JobDesk | None = None, stream_window: int = 4, **settings: Any) -> AsyncIterator[Door]:
    """Serve on a free port until the block ends.  `settings` are those of the section "server"."""
    chosen = ServerSettings.model_validate({"port": 0, **settings})
    kind = doors.kind_of(chosen.door)
    metrics, closing, health = Metrics(), asyncio.Event(), Health(PUBLIC_SERVICES)
    desk, engine, catalog, registry = desk or JobDesk(), EchoEngine(), MemoryCatalog(), MemoryRegistry()
    server = public_server(
        chosen,
        Interceptor(metrics, closing),
        health,
        is_behind_door=kind == "native",
        training=TrainingService(desk, Families(plugins=())),
        inference=InferenceService(engine, Statuses(metrics), closing, stream_window),
        models=ModelService(registry, engine),
        datasets=DatasetService(catalog, desk),
        open_inference=OpenInferenceService(
            engine, registry, health, Statuses(metrics), closing, InferenceSettings(stream_window=stream_window)
        ),
    )
    limits = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with TemporaryDirectory(prefix="headrace-") as folder:
        holder = doors.bind_door(kind, server, chosen, Path(folder) / "public.sock")
        await holder.open()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{holder.port}", options=limits) as channel:
                yield Door(desk, engine, catalog, registry, metrics, health, closing, holder, holder.port, channel)
        finally:
            engine.release()
            await holder.close(0)
