"""A real gRPC server on a free port of this machine, with scripted services behind it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_health.v1.health_pb2 import HealthCheckResponse

from headrace.datasets.v1.dataset_service_pb2_grpc import add_DatasetServiceServicer_to_server
from headrace.inference.v1.inference_service_pb2_grpc import add_InferenceServiceServicer_to_server
from headrace.models.v1.model_service_pb2_grpc import add_ModelServiceServicer_to_server
from headrace.training.v1.training_service_pb2_grpc import add_TrainingServiceServicer_to_server
from tests.doubles.scripted_datasets import ScriptedDatasets
from tests.doubles.scripted_inference import ScriptedInference
from tests.doubles.scripted_models import ScriptedModels
from tests.doubles.scripted_training import ScriptedTraining


@dataclass
class ScriptedServer:
    """The services, and where they listen."""

    training: ScriptedTraining = field(default_factory=ScriptedTraining)
    inference: ScriptedInference = field(default_factory=ScriptedInference)
    datasets: ScriptedDatasets = field(default_factory=ScriptedDatasets)
    models: ScriptedModels = field(default_factory=ScriptedModels)
    target: str = ""

    @asynccontextmanager
    async def listen(self, port: int = 0) -> AsyncIterator[None]:
        """Answer until the block is left; then every call under way breaks."""
        server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        add_TrainingServiceServicer_to_server(self.training, server)
        add_InferenceServiceServicer_to_server(self.inference, server)
        add_DatasetServiceServicer_to_server(self.datasets, server)
        add_ModelServiceServicer_to_server(self.models, server)
        health = HealthServicer()
        await health.set("", HealthCheckResponse.SERVING)
        await health.set("models/digits", HealthCheckResponse.NOT_SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(health, server)
        self.target = f"127.0.0.1:{server.add_insecure_port(f'127.0.0.1:{port}')}"
        await server.start()
        try:
            yield
        finally:
            await server.stop(None)
