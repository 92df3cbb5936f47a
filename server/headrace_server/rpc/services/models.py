"""headrace.models.v1.ModelService: thin between the wire, the registry and the engine."""

from collections.abc import AsyncIterator

from headrace.models.v1 import model_service_pb2 as pb, model_service_pb2_grpc as pb_grpc
from headrace_server.errors import InvalidSpec, InvalidTensor, Violation
from headrace_server.names import ModelName, parse_predictable
from headrace_server.pages import PageRequest
from headrace_server.rpc.closing import closed_after
from headrace_server.rpc.interceptor import Context, Requests
from headrace_server.rpc.ports import EnginePort, RegistryPort
from headrace_server.rpc.services.uploads import read_chunks, read_header
from headrace_server.rpc.wire.ensembles import ensemble_from_proto
from headrace_server.rpc.wire.models import (
    alias_of,
    artifact_to_proto,
    model_id,
    model_to_proto,
    uploaded_format,
    version_of,
    version_to_proto,
)
from headrace_server.rpc.wire.plans import plan_to_proto
from headrace_server.rpc.wire.serving import serving_change
from headrace_server.rpc.wire.tensors import tensors_from_proto

LONGEST_REQUEST_ID = 128


class ModelService(pb_grpc.ModelServiceServicer):
    """The registry: models, their versions, and the names that point to them."""

    def __init__(self, registry: RegistryPort, engine: EnginePort) -> None:
        self._registry = registry
        self._engine = engine

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        """Return one model."""
        model = await self._registry.get(model_id(request.name, "name"))
        return pb.GetModelResponse(model=model_to_proto(model))

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        """Return a page of models."""
        page = PageRequest.parse(request.page_size, request.page_token, "models")
        found = await self._registry.list(page)
        return pb.ListModelsResponse(models=map(model_to_proto, found.items), next_page_token=found.next_token)

    async def UpdateModel(self, request: pb.UpdateModelRequest, context: Context) -> pb.UpdateModelResponse:
        """Change how the versions of a model are served."""
        changed = await self._registry.change_serving(
            model_id(request.model.name, "model.name"), serving_change(request)
        )
        return pb.UpdateModelResponse(model=model_to_proto(changed))

    async def GetModelVersion(self, request: pb.GetModelVersionRequest, context: Context) -> pb.GetModelVersionResponse:
        """Return one version."""
        version = await self._registry.resolve(ModelName.parse(request.name))
        return pb.GetModelVersionResponse(model_version=version_to_proto(version))

    async def ListModelVersions(
        self, request: pb.ListModelVersionsRequest, context: Context
    ) -> pb.ListModelVersionsResponse:
        """Return a page of versions."""
        model = model_id(request.model, "model")
        page = PageRequest.parse(request.page_size, request.page_token, "model_versions", model)
        found = await self._registry.list_versions(model, page)
        return pb.ListModelVersionsResponse(
            model_versions=map(version_to_proto, found.items), next_page_token=found.next_token
        )

    async def UploadModelVersion(
        self, requests: Requests[pb.UploadModelVersionRequest], context: Context
    ) -> pb.UploadModelVersionResponse:
        """Register a file that comes in pieces."""
        header: pb.UploadModelVersionHeader = await read_header(requests)
        model = model_id(header.model, "header.model")
        if len(header.request_id) > LONGEST_REQUEST_ID:
            raise InvalidSpec([Violation("header.request_id", f"has more than {LONGEST_REQUEST_ID} characters")])
        artifact_format = uploaded_format(header.format, "header.format")
        async with closed_after(read_chunks(requests)) as chunks:
            version = await self._registry.register_file(
                model, artifact_format, chunks, digest=header.digest, request_id=header.request_id
            )
        return pb.UploadModelVersionResponse(model_version=version_to_proto(version))

    async def RegisterEnsemble(
        self, request: pb.RegisterEnsembleRequest, context: Context
    ) -> pb.RegisterEnsembleResponse:
        """Register an ensemble."""
        model = model_id(request.model, "model")
        if len(request.request_id) > LONGEST_REQUEST_ID:
            raise InvalidSpec([Violation("request_id", f"has more than {LONGEST_REQUEST_ID} characters")])
        ensemble = ensemble_from_proto(request.ensemble)
        version = await self._registry.register_ensemble(model, ensemble, request_id=request.request_id)
        return pb.RegisterEnsembleResponse(model_version=version_to_proto(version))

    async def AssignAlias(self, request: pb.AssignAliasRequest, context: Context) -> pb.AssignAliasResponse:
        """Point an alias to a version."""
        model = model_id(request.model, "model")
        version = version_of(request.model_version, model, "model_version")
        changed = await self._registry.assign_alias(model, alias_of(request.alias), version)
        return pb.AssignAliasResponse(model=model_to_proto(changed))

    async def DeleteAlias(self, request: pb.DeleteAliasRequest, context: Context) -> pb.DeleteAliasResponse:
        """Take an alias away."""
        changed = await self._registry.delete_alias(model_id(request.model, "model"), alias_of(request.alias))
        return pb.DeleteAliasResponse(model=model_to_proto(changed))

    async def LoadModelVersion(
        self, request: pb.LoadModelVersionRequest, context: Context
    ) -> pb.LoadModelVersionResponse:
        """Load a version and return when it answers."""
        loaded = await self._engine.load(parse_predictable(request.name), request.backend)
        return pb.LoadModelVersionResponse(model_version=str(loaded.version.name), backend=loaded.backend)

    async def UnloadModelVersion(
        self, request: pb.UnloadModelVersionRequest, context: Context
    ) -> pb.UnloadModelVersionResponse:
        """Unload a version when its calls are finished."""
        version = await self._engine.unload(parse_predictable(request.name))
        return pb.UnloadModelVersionResponse(model_version=str(version.name))

    async def GetPlan(self, request: pb.GetPlanRequest, context: Context) -> pb.GetPlanResponse:
        """Say how a version is run, and why."""
        return pb.GetPlanResponse(plan=plan_to_proto(await self._engine.plan(ModelName.parse(request.name))))

    async def MeasurePlan(self, request: pb.MeasurePlanRequest, context: Context) -> pb.MeasurePlanResponse:
        """Measure a version anew."""
        return pb.MeasurePlanResponse(plan=plan_to_proto(await self._engine.measure(ModelName.parse(request.name))))

    async def SetCalibration(self, request: pb.SetCalibrationRequest, context: Context) -> pb.SetCalibrationResponse:
        """Set the rows that plans are judged with."""
        name = ModelName.parse(request.name)
        inputs, misfits = tensors_from_proto(request.inputs)
        if misfits:
            raise InvalidTensor(misfits, request.name)
        return pb.SetCalibrationResponse(num_rows=await self._engine.calibrate(name, inputs))

    async def DownloadArtifact(
        self, request: pb.DownloadArtifactRequest, context: Context
    ) -> AsyncIterator[pb.DownloadArtifactResponse]:
        """Yield a description of one file, then its bytes."""
        version = await self._registry.resolve(ModelName.parse(request.name))
        artifact, content = self._registry.read_artifact(version, request.path)
        async with closed_after(content) as chunks:
            yield pb.DownloadArtifactResponse(artifact=artifact_to_proto(artifact))
            async for chunk in chunks:
                yield pb.DownloadArtifactResponse(chunk=chunk)
