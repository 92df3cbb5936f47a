"""The registry: models, versions, aliases, files."""

from __future__ import annotations

import asyncio
import hashlib
import os
import uuid
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Literal, TypeAlias

from google.protobuf.field_mask_pb2 import FieldMask
from numpy.typing import ArrayLike

from headrace.errors import DigestMismatch, ServerFault
from headrace.evidence import Evidence
from headrace.models.v1.ensemble_pb2 import Ensemble
from headrace.models.v1.model_pb2 import Artifact, Model, ModelVersion
from headrace.models.v1.model_service_pb2 import (
    AssignAliasRequest,
    DeleteAliasRequest,
    DownloadArtifactRequest,
    GetModelRequest,
    GetModelVersionRequest,
    GetPlanRequest,
    ListModelsRequest,
    ListModelVersionsRequest,
    LoadModelVersionRequest,
    LoadModelVersionResponse,
    MeasurePlanRequest,
    RegisterEnsembleRequest,
    SetCalibrationRequest,
    UnloadModelVersionRequest,
    UpdateModelRequest,
    UploadModelVersionHeader,
    UploadModelVersionRequest,
    UploadModelVersionResponse,
)
from headrace.models.v1.plan_pb2 import Plan
from headrace.models.v1.serving_options_pb2 import ServingOptions
from headrace.names import model_name
from headrace.pages import Page, collect
from headrace.tensors import to_tensor
from headrace.type.v1.tensor_pb2 import Precision
from headrace.uploads import open_content
from headrace.wire import Wire

BackendName: TypeAlias = Literal["onnxruntime", "torch"]
PrecisionName: TypeAlias = Literal["auto", "fp32", "bf16", "fp16", "int8"]
LaneSharingName: TypeAlias = Literal["auto", "own", "shared"]
ModelFormatName: TypeAlias = Literal["onnx", "torch_export"]

LOAD_SECONDS = 300.0
MEASURE_SECONDS = 900.0
_LANE_SHARING = {
    "auto": ServingOptions.LANE_SHARING_UNSPECIFIED,
    "own": ServingOptions.LANE_SHARING_OWN,
    "shared": ServingOptions.LANE_SHARING_SHARED,
}
_FORMAT_BY_ENDING: dict[str, ModelFormatName] = {".onnx": "onnx", ".pt2": "torch_export"}


class ModelCalls:
    """The part of a client that keeps models."""

    _wire: Wire

    async def get_model(self, model: str) -> Model:
        """One model with its aliases.  Raises ModelNotFound."""
        request = GetModelRequest(name=model_name(model))
        return (await self._wire.call_once(self._wire.models.GetModel, request)).model

    async def list_models(self, *, limit: int | None = None) -> list[Model]:
        """All models by name, or the first `limit`."""

        async def page(size: int, token: str) -> Page[Model]:
            request = ListModelsRequest(page_size=size, page_token=token)
            answer = await self._wire.call_once(self._wire.models.ListModels, request)
            return Page(answer.models, answer.next_page_token)

        return await collect(page, limit)

    async def update_model(
        self,
        model: str,
        *,
        precision: PrecisionName | None = None,
        tolerances: Mapping[str, float] | None = None,
        is_pinned: bool | None = None,
        cache: bool | None = None,
        cache_max_age_seconds: float | None = None,
        num_lanes: int | None = None,
        lane_sharing: LaneSharingName | None = None,
    ) -> Model:
        """Change how the versions of a model are served; what is None stays as it is.

        `tolerances` by name: max_relative_error, min_cosine, min_agreement, max_metric_loss.
        `cache` says whether the answer to the same question may be given again, `cache_max_age_seconds` for how long.
        `num_lanes` threads run a version at the same time, from its next load on; 0: the server's choice.
        `lane_sharing` says whether they are its own, or those that all models of a device share.
        Loaded versions follow all else in the background.  Raises InvalidSpec, ModelNotFound.
        """
        options = (await self.get_model(model)).serving
        paths = []
        if precision is not None:
            options.precision.precision = Precision.Value(f"PRECISION_{precision.upper()}")
        for name, value in (tolerances or {}).items():
            setattr(options.precision.tolerances, name, value)
        if precision is not None or tolerances:
            paths.append("serving.precision")
        sharing = _LANE_SHARING[lane_sharing] if lane_sharing is not None else None
        for name, setting in (("is_pinned", is_pinned), ("num_lanes", num_lanes), ("lane_sharing", sharing)):
            if setting is not None:
                setattr(options, name, setting)
                paths.append(f"serving.{name}")
        if cache is not None:
            options.cache.is_enabled = cache
        if cache_max_age_seconds is not None:
            options.cache.max_age.FromNanoseconds(round(cache_max_age_seconds * 1e9))
        if cache is not None or cache_max_age_seconds is not None:
            paths.append("serving.cache")
        if not paths:
            raise ValueError("nothing to change was given")
        request = UpdateModelRequest(
            model=Model(name=model_name(model), serving=options), update_mask=FieldMask(paths=paths)
        )
        return (await self._wire.call_safely(self._wire.models.UpdateModel, request)).model

    async def get_model_version(self, model: str) -> ModelVersion:
        """One version: "digits" (what a prediction would use), "digits@champion", "models/digits/versions/3"."""
        request = GetModelVersionRequest(name=model_name(model))
        return (await self._wire.call_once(self._wire.models.GetModelVersion, request)).model_version

    async def list_model_versions(self, model: str, *, limit: int | None = None) -> list[ModelVersion]:
        """The versions of a model, newest first."""

        async def page(size: int, token: str) -> Page[ModelVersion]:
            request = ListModelVersionsRequest(model=model_name(model), page_size=size, page_token=token)
            answer = await self._wire.call_once(self._wire.models.ListModelVersions, request)
            return Page(answer.model_versions, answer.next_page_token)

        return await collect(page, limit)

    async def assign_alias(self, model: str, alias: str, version: int | str) -> Model:
        """Point an alias to a version, given by its number or full name; "default" decides what the bare name means."""
        name = model_name(model)
        target = (
            f"{name}/versions/{version}" if isinstance(version, int) or version.isdecimal() else model_name(version)
        )
        request = AssignAliasRequest(model=name, alias=alias, model_version=target)
        return (await self._wire.call_safely(self._wire.models.AssignAlias, request)).model

    async def delete_alias(self, model: str, alias: str) -> Model:
        """Take an alias away."""
        request = DeleteAliasRequest(model=model_name(model), alias=alias)
        return (await self._wire.call_once(self._wire.models.DeleteAlias, request)).model

    async def load_model(
        self, model: str, *, backend: BackendName | None = None, timeout: float = LOAD_SECONDS
    ) -> LoadModelVersionResponse:
        """Load a version and warm it up; returns when it answers."""
        request = LoadModelVersionRequest(name=model_name(model), backend=backend or "")
        return await self._wire.call_safely(self._wire.models.LoadModelVersion, request, timeout)

    async def unload_model(self, model: str, *, timeout: float = LOAD_SECONDS) -> str:
        """Unload a version when the calls it has taken are finished; returns its full name."""
        request = UnloadModelVersionRequest(name=model_name(model))
        return (await self._wire.call_safely(self._wire.models.UnloadModelVersion, request, timeout)).model_version

    async def register_ensemble(self, model: str, ensemble: Ensemble, *, request_id: str | None = None) -> ModelVersion:
        """Register an ensemble (see `headrace.mean`, `headrace.vote`, `headrace.chain`) as a new version of `model`.

        Raises InvalidSpec with everything that is wrong with it.
        """
        request = RegisterEnsembleRequest(
            request_id=request_id or uuid.uuid4().hex, model=model_name(model), ensemble=ensemble
        )
        return (await self._wire.call_safely(self._wire.models.RegisterEnsemble, request)).model_version

    async def get_plan(self, model: str) -> Plan:
        """How a version is run on the server, what else was tried, and why this was chosen."""
        request = GetPlanRequest(name=model_name(model))
        return (await self._wire.call_once(self._wire.models.GetPlan, request)).plan

    async def measure_plan(self, model: str, *, timeout: float = MEASURE_SECONDS) -> Plan:
        """Measure the ways to run a version anew; returns when it runs the best.  Takes minutes."""
        request = MeasurePlanRequest(name=model_name(model))
        return (await self._wire.call_safely(self._wire.models.MeasurePlan, request, timeout)).plan

    async def set_calibration(self, model: str, inputs: Mapping[str, ArrayLike]) -> int:
        """Judge the plans of a version by these rows from now on; returns how many the server keeps."""
        request = SetCalibrationRequest(name=model_name(model))
        for name, value in inputs.items():
            request.inputs[name].CopyFrom(to_tensor(value))
        return (await self._wire.call_safely(self._wire.models.SetCalibration, request)).num_rows

    async def upload_model(
        self,
        model: str,
        source: str | os.PathLike[str] | bytes,
        *,
        format: ModelFormatName | None = None,  # noqa: A002 - the contract's word
        request_id: str = "",
    ) -> ModelVersion:
        """Register an ONNX or torch.export file as a new version; its signature is read from the file.

        The format is told by the ending (.onnx, .pt2) unless given; bytes need it.  Each call makes a version, except
        that calls with the same `request_id` make one; a call that the server was away for is repeated safely.
        """
        async with open_content(source) as content:
            header = UploadModelVersionHeader(
                request_id=request_id or str(uuid.uuid4()),
                model=model_name(model),
                format=_format(format or _FORMAT_BY_ENDING.get(Path(content.file_name).suffix.lower())),
                digest=content.digest,
            )

            async def messages() -> AsyncGenerator[UploadModelVersionRequest, None]:
                yield UploadModelVersionRequest(header=header)
                async for chunk in content.chunks():
                    yield UploadModelVersionRequest(chunk=chunk)

            async def upload(_: float | None) -> UploadModelVersionResponse:
                async with aclosing(messages()) as stream:
                    return await self._wire.send(self._wire.models.UploadModelVersion, stream)

            return (await self._wire.repeat(upload, None)).model_version

    async def download_artifact(self, model: str, to: str | os.PathLike[str], *, artifact: str = "") -> Path:
        """Write one file of a version to `to`, a path or an existing folder, and return where it is.

        `artifact` is its path in the version; the version's first file when empty.  The file appears under its name
        only when its digest is right: DigestMismatch otherwise.
        """
        name = model_name(model)
        if not artifact:
            version = await self.get_model_version(name)
            if not version.artifacts:
                raise ServerFault(f"{version.name} has no files")
            name, artifact = version.name, version.artifacts[0].path
        destination = Path(to)
        if await asyncio.to_thread(destination.is_dir):
            destination /= Path(artifact).name
        await self._download(DownloadArtifactRequest(name=name, path=artifact), destination)
        return destination

    async def _download(self, request: DownloadArtifactRequest, destination: Path) -> None:
        part = destination.with_name(f".{destination.name}.{uuid.uuid4().hex}.part")
        file = await asyncio.to_thread(part.open, "xb")
        try:
            with file:
                described, digest = Artifact(), hashlib.sha256()
                async with aclosing(self._wire.read(self._wire.models.DownloadArtifact(request))) as messages:
                    async for message in messages:
                        if message.HasField("artifact"):
                            described = message.artifact
                        else:
                            digest.update(message.chunk)
                            await asyncio.to_thread(file.write, message.chunk)
            found = f"sha256:{digest.hexdigest()}"
            if found != described.digest:
                raise DigestMismatch(
                    f"{request.path} of {request.name} arrived damaged; try again",
                    evidence=Evidence(metadata={"expected": described.digest, "found": found}),
                )
            await asyncio.to_thread(part.replace, destination)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def _format(name: ModelFormatName | None) -> Artifact.Format.ValueType:
    if name is None:
        return Artifact.Format.FORMAT_UNSPECIFIED
    return Artifact.Format.Value(f"FORMAT_{name.upper()}")
