"""inference.GRPCInferenceService: the Open Inference Protocol in front of the same engine.

It translates, and has no behaviour of its own.  Knows the protocol's methods; what messages mean is in rpc/wire.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

import grpc

from headrace_server import __version__
from headrace_server.errors import (
    InvalidName,
    InvalidSpec,
    ModelNotLoaded,
    NoCheckpointYet,
    NotFound,
    Unsupported,
    Violation,
)
from headrace_server.inference.prediction import Readiness
from headrace_server.inference.tally import Statistics
from headrace_server.models.version import Model, ModelVersion
from headrace_server.names import ModelName, SnapshotName
from headrace_server.pages import LARGEST_PAGE_SIZE, PageRequest
from headrace_server.rpc.deadline import deadline_of
from headrace_server.rpc.health import Health
from headrace_server.rpc.interceptor import Context, Methods, Requests
from headrace_server.rpc.open_inference import grpc_predict_v2_pb2 as pb, grpc_predict_v2_pb2_grpc as pb_grpc
from headrace_server.rpc.ports import EnginePort, RegistryPort
from headrace_server.rpc.services.procession import Procession
from headrace_server.rpc.status import Statuses
from headrace_server.rpc.wire.open_inference import (
    answer_of,
    is_heavy_request,
    is_heavy_response,
    name_of,
    question_from_request,
    refusal_of,
    response_of,
)
from headrace_server.rpc.wire.open_inference_models import config_of, index_entry, metadata_of, statistics_of
from headrace_server.settings import InferenceSettings

ANSWERED_TO_THE_END = frozenset({"ServerLive", "ServerReady", "ModelReady", "ServerMetadata"})
"""These say that the server is ending, so they are not refused for it."""
EXTENSIONS = ("model_repository", "model_configuration", "schedule_policy", "statistics")
_SHARED_MEMORY = "shared memory is not offered: send tensors in the request"
_NOT_OFFERED = {
    "SystemSharedMemoryStatus": _SHARED_MEMORY,
    "SystemSharedMemoryRegister": _SHARED_MEMORY,
    "SystemSharedMemoryUnregister": _SHARED_MEMORY,
    "CudaSharedMemoryStatus": _SHARED_MEMORY,
    "CudaSharedMemoryRegister": _SHARED_MEMORY,
    "CudaSharedMemoryUnregister": _SHARED_MEMORY,
    "TraceSetting": "tracing is not set over this protocol",
    "LogSettings": "logging is not set over this protocol: see the setting telemetry.log_level",
}


class OpenInferenceService(pb_grpc.GRPCInferenceServiceServicer):
    """Answers clients of KServe, Triton and their kin."""

    def __init__(
        self,
        engine: EnginePort,
        registry: RegistryPort,
        health: Health,
        statuses: Statuses,
        closing: asyncio.Event,
        settings: InferenceSettings,
    ) -> None:
        self._engine = engine
        self._registry = registry
        self._health = health
        self._statuses = statuses
        self._closing = closing
        self._settings = settings

    # The server.

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:
        """Say that the process answers."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:
        """Say what health says of the whole server."""
        return pb.ServerReadyResponse(ready=self._health.is_serving())

    async def ServerMetadata(self, request: pb.ServerMetadataRequest, context: Context) -> pb.ServerMetadataResponse:
        """Name the server."""
        return pb.ServerMetadataResponse(name="headrace", version=__version__, extensions=EXTENSIONS)

    # Predictions.

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        """Run a model once."""
        return await self._infer(request, deadline_of(context))

    async def ModelStreamInfer(  # type: ignore[override]  # writes its answers itself
        self, requests: Requests[pb.ModelInferRequest], context: Context
    ) -> None:
        """Run a model for each request; answers come in the order of the requests."""
        deadline = deadline_of(context)

        async def answer(request: pb.ModelInferRequest) -> pb.ModelStreamInferResponse:
            try:
                return answer_of(await self._infer(request, deadline))
            except Exception as error:  # noqa: BLE001 - a failed request is an answer too
                return refusal_of(self._statuses.of(error), request.id)

        await Procession(answer, self._closing, self._settings.stream_window).walk(requests, context.write)

    # Models.

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:
        """Say whether a version is loaded; also of models that nobody knows, as clients wait for a model to come."""
        try:
            status = await self._engine.status(name_of(request.name, request.version, "name"))
        except (NotFound, NoCheckpointYet):
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=self._health.is_serving() and status.readiness is Readiness.READY)

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Context) -> pb.ModelMetadataResponse:
        """Describe a model."""
        name = name_of(request.name, request.version, "name")
        status = await self._engine.status(name)
        is_one = name.version is not None or isinstance(name, SnapshotName)
        known = [status.version] if is_one else await self._versions(name.model)
        return metadata_of(status, known)

    async def ModelConfig(self, request: pb.ModelConfigRequest, context: Context) -> pb.ModelConfigResponse:
        """Describe a model in the terms of its batching."""
        status = await self._engine.status(name_of(request.name, request.version, "name"))
        return pb.ModelConfigResponse(config=config_of(status, self._settings))

    async def ModelStatistics(self, request: pb.ModelStatisticsRequest, context: Context) -> pb.ModelStatisticsResponse:
        """Show what was counted."""
        counted: Mapping[ModelName, Statistics] = self._engine.statistics()
        if request.name:
            name = name_of(request.name, request.version, "name")
            if isinstance(name, SnapshotName):
                raise Unsupported("the statistics of a job's checkpoints", "see the metrics of the server")
            version = await self._registry.resolve(name)
            is_one = name.version is not None or name.alias is not None
            counted = {version.name: Statistics()} | {
                other: statistics
                for other, statistics in counted.items()
                if other.model == name.model and (other == version.name or not is_one)
            }
        elif request.version:
            raise InvalidSpec([Violation("version", "must be empty when no model is named")])
        entries = sorted(counted.items(), key=lambda entry: (entry[0].model, entry[0].version or 0))
        return pb.ModelStatisticsResponse(model_stats=[statistics_of(*entry) for entry in entries])

    # The repository.

    async def RepositoryIndex(self, request: pb.RepositoryIndexRequest, context: Context) -> pb.RepositoryIndexResponse:
        """List all models with their versions and states."""
        _check_repository(request.repository_name)
        response = pb.RepositoryIndexResponse()
        async for model in self._models():
            for version in reversed(await self._versions(model.id)):
                status = self._engine.look(version)
                if not request.ready or status.readiness is Readiness.READY:
                    response.models.append(index_entry(status))
        return response

    async def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, context: Context
    ) -> pb.RepositoryModelLoadResponse:
        """Load a model and return when it answers."""
        _check_repository(request.repository_name)
        if request.parameters:
            problem = "is not offered: a registered version never changes; register another"
            raise InvalidSpec([Violation(f'parameters["{key}"]', problem) for key in sorted(request.parameters)])
        await self._engine.load(name_of(request.model_name, ""))
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, context: Context
    ) -> pb.RepositoryModelUnloadResponse:
        """Unload all versions of a model and return when their requests are finished."""
        _check_repository(request.repository_name)
        name = name_of(request.model_name, "")
        if name.alias is not None and not isinstance(name, SnapshotName):
            raise InvalidName(request.model_name, "{model}: all versions are unloaded", "model_name")
        if not isinstance(name, SnapshotName):
            await self._registry.get(name.model)
        loaded = [version.name for version in self._engine.loaded() if version.model == name.model]
        outcomes = await asyncio.gather(*map(self._engine.unload, loaded), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, ModelNotLoaded):
                raise outcome
        return pb.RepositoryModelUnloadResponse()

    # Inside.

    async def _infer(self, request: pb.ModelInferRequest, deadline: float | None) -> pb.ModelInferResponse:
        if is_heavy_request(request):
            question = await asyncio.to_thread(question_from_request, request)
        else:
            question = question_from_request(request)
        if question.timeout_seconds is not None:
            due_at = time.monotonic() + question.timeout_seconds
            deadline = due_at if deadline is None else min(due_at, deadline)
        prediction = await self._engine.predict(
            question.name,
            question.inputs,
            output_names=question.output_names,
            deadline=deadline,
            priority=question.priority,
        )
        if is_heavy_response(prediction, question.is_raw):
            return await asyncio.to_thread(response_of, prediction, request.id, is_raw=question.is_raw)
        return response_of(prediction, request.id, is_raw=question.is_raw)

    async def _models(self) -> AsyncIterator[Model]:
        token = ""
        while True:
            page = await self._registry.list(PageRequest.parse(LARGEST_PAGE_SIZE, token, "open_inference"))
            for model in page.items:
                yield model
            token = page.next_token
            if not token:
                return

    async def _versions(self, model: str) -> list[ModelVersion]:
        page = PageRequest.parse(LARGEST_PAGE_SIZE, "", "open_inference", model)
        return (await self._registry.list_versions(model, page)).items


def methods_not_offered() -> Methods:
    """What the protocol's common clients can call besides, each answered with UNIMPLEMENTED and why."""
    return {
        name: grpc.unary_unary_rpc_method_handler(
            _refusing(problem), request_deserializer=_unread, response_serializer=_unread
        )
        for name, problem in _NOT_OFFERED.items()
    }


def _refusing(problem: str) -> Callable[[bytes, Context], Awaitable[bytes]]:
    async def refuse(request: bytes, context: Context) -> bytes:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, problem)

    return refuse


def _unread(content: bytes) -> bytes:
    return content


def _check_repository(name: str) -> None:
    if name:
        raise InvalidSpec([Violation("repository_name", f"is {name!r}, must be empty: there is one repository")])
