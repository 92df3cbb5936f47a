"""Models, their states and their statistics, in the words of the Open Inference Protocol and its extensions."""

from collections.abc import Iterable

from headrace_server.inference.prediction import ModelStatus, Readiness
from headrace_server.inference.tally import Statistics
from headrace_server.models.version import Artifact, ArtifactFormat, ModelVersion
from headrace_server.names import ModelName
from headrace_server.rpc.open_inference import grpc_predict_v2_pb2 as pb
from headrace_server.rpc.wire.open_inference import DEFAULT_LEVEL, LOWEST_LEVEL, label_of
from headrace_server.rpc.wire.open_inference_tensors import datatype_of
from headrace_server.settings import InferenceSettings
from headrace_server.tensors import DataType, TensorSpec

# In the order in which the engine chooses; what the protocol's clients call the backend, and its platform.
_PLATFORMS = {
    ArtifactFormat.ONNX: ("onnxruntime", "onnxruntime_onnx"),
    ArtifactFormat.TORCH_EXPORT: ("pytorch", "pytorch_export"),
}
_BACKENDS = {"onnxruntime": ArtifactFormat.ONNX, "torch": ArtifactFormat.TORCH_EXPORT}
_NUMBERS = {data_type: dict(pb.DataType.items()).get(f"TYPE_{data_type}", pb.TYPE_INVALID) for data_type in DataType}
_STATES = {
    Readiness.READY: "READY",
    Readiness.LOADING: "LOADING",
    Readiness.FAILED: "UNAVAILABLE",
    Readiness.UNLOADED: "UNAVAILABLE",
}


def metadata_of(status: ModelStatus, versions: Iterable[ModelVersion]) -> pb.ModelMetadataResponse:
    """What a model takes and gives."""
    version = status.version
    _, platform, _ = _running(status)
    return pb.ModelMetadataResponse(
        name=version.model,
        versions=[label_of(each) for each in sorted(versions, key=lambda each: each.version)],
        platform=platform,
        inputs=map(_metadata_of_tensor, version.signature.inputs),
        outputs=map(_metadata_of_tensor, version.signature.outputs),
    )


def config_of(status: ModelStatus, settings: InferenceSettings) -> pb.ModelConfig:
    """How a model is batched, and what it takes and gives in those terms."""
    version = status.version
    backend, platform, file_name = _running(status)
    skipped = 1 if version.signature.is_batchable else 0
    config = pb.ModelConfig(
        name=version.model,
        platform=platform,
        backend=backend,
        default_model_filename=file_name,
        input=[
            pb.ModelInput(name=spec.name, data_type=_NUMBERS[spec.data_type], dims=spec.shape[skipped:])
            for spec in version.signature.inputs
        ],
        output=[
            pb.ModelOutput(name=spec.name, data_type=_NUMBERS[spec.data_type], dims=spec.shape[skipped:])
            for spec in version.signature.outputs
        ],
    )
    if version.signature.is_batchable:
        config.max_batch_size = settings.max_batch_rows
        config.dynamic_batching.max_queue_delay_microseconds = round(settings.max_delay_seconds * 1_000_000)
        config.dynamic_batching.priority_levels = LOWEST_LEVEL
        config.dynamic_batching.default_priority_level = DEFAULT_LEVEL
    return config


def statistics_of(name: ModelName, counted: Statistics) -> pb.ModelStatistics:
    """What was counted for one version."""
    return pb.ModelStatistics(
        name=name.model,
        version=str(name.version),
        last_inference=round((counted.last_call_at or 0) * 1000),
        inference_count=counted.answered_rows,
        execution_count=sum(runs.num_runs for runs in counted.runs.values()),
        inference_stats=pb.InferStatistics(
            success=_duration(counted.num_answered, counted.answered_seconds),
            fail=_duration(counted.num_failed, counted.failed_seconds),
            queue=_duration(counted.num_answered, counted.queue_seconds),
            compute_input=_duration(counted.num_answered, counted.assemble_seconds),
            compute_infer=_duration(counted.num_answered, counted.compute_seconds),
            compute_output=_duration(counted.num_answered, counted.respond_seconds),
        ),
        batch_stats=[
            pb.InferBatchStatistics(
                batch_size=rows,
                compute_input=_duration(runs.num_runs, runs.assemble_seconds),
                compute_infer=_duration(runs.num_runs, runs.compute_seconds),
            )
            for rows, runs in sorted(counted.runs.items())
        ],
    )


def index_entry(status: ModelStatus) -> pb.RepositoryIndexResponse.ModelIndex:
    """One version in the list of all."""
    reason = str(status.failure) if status.failure is not None else ""
    if status.readiness is Readiness.UNLOADED:
        reason = "not loaded: its first request, or RepositoryModelLoad, loads it"
    return pb.RepositoryIndexResponse.ModelIndex(
        name=status.version.model,
        version=str(status.version.version),
        state=_STATES[status.readiness],
        reason=reason,
    )


def _running(status: ModelStatus) -> tuple[str, str, str]:
    """The backend, the platform and the file of what runs a version, or would."""
    if status.version.ensemble is not None:
        return "", "ensemble", ""
    artifact = _chosen(status)
    if artifact is None:
        return "", "", ""
    return (*_PLATFORMS[artifact.format], artifact.path)


def _chosen(status: ModelStatus) -> Artifact | None:
    loaded = _BACKENDS.get(status.backend)
    found = (status.version.artifact(each) for each in ((loaded,) if loaded is not None else _PLATFORMS))
    return next((artifact for artifact in found if artifact is not None), None)


def _metadata_of_tensor(spec: TensorSpec) -> pb.ModelMetadataResponse.TensorMetadata:
    return pb.ModelMetadataResponse.TensorMetadata(
        name=spec.name, datatype=datatype_of(spec.data_type), shape=spec.shape
    )


def _duration(count: int, seconds: float) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=count, ns=round(seconds * 1_000_000_000))
