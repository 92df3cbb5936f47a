"""Models and their versions, from the registry's values to the contract's messages."""

from collections.abc import Mapping
from typing import Any

from google.protobuf.struct_pb2 import Struct

from headrace.models.v1 import model_pb2 as pb
from headrace_server.errors import InvalidName, InvalidSpec, Violation
from headrace_server.models.version import Artifact, ArtifactFormat, Lineage, Model, ModelVersion
from headrace_server.names import ID_RULE, ModelName, is_id
from headrace_server.rpc.wire.ensembles import ensemble_to_proto
from headrace_server.rpc.wire.events import time_to_proto
from headrace_server.rpc.wire.serving import serving_to_proto
from headrace_server.rpc.wire.tensors import spec_to_proto

_UPLOADED = {
    pb.Artifact.FORMAT_ONNX: ArtifactFormat.ONNX,
    pb.Artifact.FORMAT_TORCH_EXPORT: ArtifactFormat.TORCH_EXPORT,
}


def uploaded_format(number: int, field: str) -> ArtifactFormat:
    """The format of an upload.  Raises InvalidSpec for one that cannot be served."""
    for known, artifact_format in _UPLOADED.items():
        if number == known:
            return artifact_format
    raise InvalidSpec([Violation(field, "must be FORMAT_ONNX or FORMAT_TORCH_EXPORT")])


def model_id(text: str, field: str) -> str:
    """The last part of `models/{model}`.  Raises InvalidName, also for a version or an alias."""
    name = ModelName.parse(text, field)
    if name.version is not None or name.alias is not None:
        raise InvalidName(text, "models/{model}", field)
    return name.model


def version_of(text: str, model: str, field: str) -> int:
    """The number in `models/{model}/versions/{version}` of that very model.  Raises InvalidName or InvalidSpec."""
    name = ModelName.parse(text, field)
    if name.version is None:
        raise InvalidName(text, "models/{model}/versions/{version}", field)
    if name.model != model:
        raise InvalidSpec([Violation(field, f"is a version of models/{name.model}, must be one of models/{model}")])
    return name.version


def alias_of(text: str, field: str = "alias") -> str:
    """A well-formed alias.  Raises InvalidSpec."""
    if not is_id(text):
        raise InvalidSpec([Violation(field, f"{text!r} is not made of {ID_RULE}")])
    return text


def model_to_proto(model: Model) -> pb.Model:
    """A line of versions."""
    return pb.Model(
        name=f"models/{model.id}",
        latest_version=f"models/{model.id}/versions/{model.latest_version}" if model.latest_version else "",
        aliases={alias: f"models/{model.id}/versions/{version}" for alias, version in model.aliases.items()},
        create_time=time_to_proto(model.created_at),
        serving=serving_to_proto(model.serving),
    )


def version_to_proto(version: ModelVersion) -> pb.ModelVersion:
    """One immutable version."""
    return pb.ModelVersion(
        name=str(version.name),
        inputs=map(spec_to_proto, version.signature.inputs),
        outputs=map(spec_to_proto, version.signature.outputs),
        artifacts=map(artifact_to_proto, version.artifacts),
        metrics=version.metrics,
        lineage=_lineage_to_proto(version.lineage),
        create_time=time_to_proto(version.created_at),
        ensemble=ensemble_to_proto(version.ensemble) if version.ensemble is not None else None,
    )


def artifact_to_proto(artifact: Artifact) -> pb.Artifact:
    """One file of a version."""
    return pb.Artifact(
        path=artifact.path,
        format=pb.Artifact.Format.Value(f"FORMAT_{artifact.format}"),
        digest=artifact.digest,
        size_bytes=artifact.size_bytes,
    )


def struct_of(fields: Mapping[str, Any]) -> Struct:
    """JSON as the contract carries it."""
    struct = Struct()
    struct.update(fields)
    return struct


def _lineage_to_proto(lineage: Lineage) -> pb.Lineage:
    return pb.Lineage(
        training_job=lineage.training_job,
        dataset_version=lineage.dataset_version,
        dataset_digest=lineage.dataset_digest,
        checkpoint_digest=lineage.checkpoint_digest,
        step=lineage.step,
        code_version=lineage.code_version,
        environment=lineage.environment,
        spec=struct_of(lineage.spec) if lineage.spec else None,
        parity={
            path: pb.Parity(num_rows=parity.num_rows, max_abs_difference=parity.max_abs_difference)
            for path, parity in lineage.parity.items()
        },
        seed=lineage.seed,
        deterministic=lineage.deterministic,
        start_from=lineage.start_from,
        start_from_digest=lineage.start_from_digest,
    )
