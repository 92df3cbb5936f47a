"""A model service that keeps what it is sent in memory."""

import hashlib
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import grpc

from headrace.models.v1 import model_pb2 as goods, model_service_pb2 as pb
from headrace.models.v1.model_service_pb2_grpc import ModelServiceServicer
from headrace.models.v1.plan_pb2 import Bucket, Decision, Plan
from headrace.models.v1.serving_options_pb2 import ServingOptions
from headrace.type.v1.tensor_pb2 import DataType, TensorSpec
from tests.doubles.refusal import Refusal


class ScriptedModels(ModelServiceServicer):
    """Files by model, one a version."""

    def __init__(self) -> None:
        self.files: dict[str, list[bytes]] = {}
        self.aliases: dict[str, dict[str, str]] = {}
        self.serving: dict[str, ServingOptions] = {}
        self.measured: list[str] = []
        self.calibrations: list[pb.SetCalibrationRequest] = []
        self.uploads: dict[str, goods.ModelVersion] = {}
        """By request id."""
        self.headers: list[pb.UploadModelVersionHeader] = []
        self.num_lost = 0
        """So many uploads are carried out, but their answers get lost."""
        self.damage = b""
        """What is sent in the place of a file's first bytes."""

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:
        await self._check(request.name, context)
        return pb.GetModelResponse(model=self._model(request.name))

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=[self._model(name) for name in sorted(self.files)])

    async def UpdateModel(self, request: pb.UpdateModelRequest, context: Any) -> pb.UpdateModelResponse:
        await self._check(request.model.name, context)
        kept = self.serving.setdefault(request.model.name, ServingOptions())
        for path in request.update_mask.paths:
            field = path.removeprefix("serving.")
            given = getattr(request.model.serving, field)
            if isinstance(given, int):
                setattr(kept, field, given)
            else:
                getattr(kept, field).CopyFrom(given)
        return pb.UpdateModelResponse(model=self._model(request.model.name))

    async def GetModelVersion(self, request: pb.GetModelVersionRequest, context: Any) -> pb.GetModelVersionResponse:
        model, number = await self._find(request.name, context)
        return pb.GetModelVersionResponse(model_version=self._version(model, number))

    async def ListModelVersions(
        self, request: pb.ListModelVersionsRequest, context: Any
    ) -> pb.ListModelVersionsResponse:
        await self._check(request.model, context)
        numbers = range(len(self.files[request.model]), 0, -1)
        versions = [self._version(request.model, number) for number in numbers]
        return pb.ListModelVersionsResponse(model_versions=versions)

    async def UploadModelVersion(
        self, request_iterator: AsyncIterator[pb.UploadModelVersionRequest], context: Any
    ) -> pb.UploadModelVersionResponse:
        source = aiter(request_iterator)
        header = (await anext(source)).header
        self.headers.append(header)
        content = b"".join([part.chunk async for part in source])
        if header.request_id not in self.uploads:
            versions = self.files.setdefault(header.model, [])
            versions.append(content)
            self.uploads[header.request_id] = self._version(header.model, len(versions))
        if self.num_lost:
            self.num_lost -= 1
            await Refusal(grpc.StatusCode.UNAVAILABLE, "Socket closed").send(context)
        return pb.UploadModelVersionResponse(model_version=self.uploads[header.request_id])

    async def AssignAlias(self, request: pb.AssignAliasRequest, context: Any) -> pb.AssignAliasResponse:
        await self._check(request.model, context)
        self.aliases.setdefault(request.model, {})[request.alias] = request.model_version
        return pb.AssignAliasResponse(model=self._model(request.model))

    async def DeleteAlias(self, request: pb.DeleteAliasRequest, context: Any) -> pb.DeleteAliasResponse:
        await self._check(request.model, context)
        self.aliases.get(request.model, {}).pop(request.alias, None)
        return pb.DeleteAliasResponse(model=self._model(request.model))

    async def LoadModelVersion(self, request: pb.LoadModelVersionRequest, context: Any) -> pb.LoadModelVersionResponse:
        model, number = await self._find(request.name, context)
        backend = request.backend or "onnxruntime"
        return pb.LoadModelVersionResponse(model_version=f"{model}/versions/{number}", backend=backend)

    async def UnloadModelVersion(
        self, request: pb.UnloadModelVersionRequest, context: Any
    ) -> pb.UnloadModelVersionResponse:
        model, number = await self._find(request.name, context)
        return pb.UnloadModelVersionResponse(model_version=f"{model}/versions/{number}")

    async def GetPlan(self, request: pb.GetPlanRequest, context: Any) -> pb.GetPlanResponse:
        model, number = await self._find(request.name, context)
        return pb.GetPlanResponse(plan=self._plan(f"{model}/versions/{number}"))

    async def MeasurePlan(self, request: pb.MeasurePlanRequest, context: Any) -> pb.MeasurePlanResponse:
        self.measured.append(request.name)
        model, number = await self._find(request.name, context)
        return pb.MeasurePlanResponse(plan=self._plan(f"{model}/versions/{number}"))

    async def SetCalibration(self, request: pb.SetCalibrationRequest, context: Any) -> pb.SetCalibrationResponse:
        await self._find(request.name, context)
        self.calibrations.append(request)
        return pb.SetCalibrationResponse(num_rows=next(iter(request.inputs.values())).shape[0])

    async def DownloadArtifact(
        self, request: pb.DownloadArtifactRequest, context: Any
    ) -> AsyncIterator[pb.DownloadArtifactResponse]:
        model, number = await self._find(request.name, context)
        yield pb.DownloadArtifactResponse(artifact=self._version(model, number).artifacts[0])
        content = self.files[model][number - 1]
        content = self.damage + content[len(self.damage) :]
        for start in range(0, len(content), 1000):
            yield pb.DownloadArtifactResponse(chunk=content[start : start + 1000])

    def _plan(self, version: str) -> Plan:
        plan = Plan(
            model_version=version, state=Plan.STATE_CHOSEN, running=["onnxruntime-int8-dynamic"], num_rows=8,
            row_source=Plan.ROW_SOURCE_TRAINING, reference="trained network",
        )  # fmt: skip
        plan.decision.CopyFrom(
            Decision(buckets=[Bucket(max_rows=8, trial="onnxruntime-int8-dynamic")], max_batch_rows=8)
        )
        plan.decision.why = "the fastest within the tolerances of 2 that were tried"
        for name, seconds, refusal in (
            ("onnxruntime-fp32", 0.008, ""),
            ("onnxruntime-int8-dynamic", 0.004, ""),
            ("torch-fp16", 0.001, "3 elements overflow to NaN or infinity in 8 rows"),
        ):
            trial = plan.trials.add(name=name, refusal=refusal)
            trial.differences.add(rows=8, max_relative=0.01, min_cosine=0.9999)
            trial.speeds.add(rows=8, threads=1).duration.FromTimedelta(timedelta(seconds=seconds))
        return plan

    async def _find(self, name: str, context: Any) -> tuple[str, int]:
        model, _, number = name.partition("/versions/")
        await self._check(model, context)
        return model, int(number) if number else len(self.files[model])

    async def _check(self, name: str, context: Any) -> None:
        if name not in self.files:
            message = f"{name!r} does not exist"
            await Refusal(grpc.StatusCode.NOT_FOUND, message, "MODEL_NOT_FOUND", {"name": name}).send(context)

    def _model(self, name: str) -> goods.Model:
        latest = f"{name}/versions/{len(self.files[name])}"
        return goods.Model(
            name=name, latest_version=latest, aliases=self.aliases.get(name), serving=self.serving.get(name)
        )

    def _version(self, model: str, number: int) -> goods.ModelVersion:
        content = self.files[model][number - 1]
        artifact = goods.Artifact(
            path="model.onnx",
            format=goods.Artifact.Format.FORMAT_ONNX,
            digest=f"sha256:{hashlib.sha256(content).hexdigest()}",
            size_bytes=len(content),
        )
        return goods.ModelVersion(
            name=f"{model}/versions/{number}",
            artifacts=[artifact],
            inputs=[TensorSpec(name="x", data_type=DataType.DATA_TYPE_FP32, shape=[-1, 3])],
            metrics={"accuracy": 0.97},
        )
