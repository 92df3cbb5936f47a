"""What a model made of its inputs, with where the time went and what exactly ran."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from google.protobuf.duration_pb2 import Duration

from headrace.errors import HeadraceError
from headrace.inference.v1 import inference_service_pb2 as pb
from headrace.tensors import Array, from_tensor
from headrace.type.v1.tensor_pb2 import Precision, TensorSpec


@dataclass(frozen=True, slots=True)
class Timing:
    """Where the time of one call went, in seconds."""

    queue_seconds: float
    """From admission until its batch began to be assembled."""
    assemble_seconds: float
    compute_seconds: float
    """Running the model on the whole batch."""
    respond_seconds: float
    batch_rows: int
    """Rows that were computed together, this call's included."""
    batch_calls: int
    total_seconds: float
    """As the caller saw it; for an answer of a stream, from sending the request."""

    @property
    def server_seconds(self) -> float:
        """What the server accounts for."""
        return self.queue_seconds + self.assemble_seconds + self.compute_seconds + self.respond_seconds

    @property
    def transport_seconds(self) -> float:
        """The rest: encoding, the network, decoding."""
        return max(0.0, self.total_seconds - self.server_seconds)


@dataclass(frozen=True, slots=True)
class Staleness:
    """How far a checkpoint is behind the job that wrote it."""

    steps: int
    """Steps that the job is known to have done since."""
    age_seconds: float
    """Since the checkpoint was stored, or until the job ended."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """What exactly ran."""

    artifact_digest: str
    backend: str
    precision: str
    """"fp32", "bf16", "fp16"."""
    device: str
    training_job: str
    """Empty when the version was not trained by the server."""
    training_step: int = 0
    """The step of that job after which the weights were as they are."""
    checkpoint_digest: str = ""
    """"sha256:" and the digest of the checkpoint that the weights come from."""


@dataclass(frozen=True, slots=True)
class MemberAnswer:
    """What one member of an ensemble did for an answer."""

    name: str
    model_version: str
    timing: Timing
    """`total_seconds` is what the server accounts for."""
    provenance: Provenance
    members: tuple[MemberAnswer, ...] = ()
    """The same of its own members, when it is an ensemble itself."""


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """What a model made of its inputs."""

    outputs: Mapping[str, Array]
    """Every output under its name, in the order of the model's signature.  The first axis counts rows."""
    model_version: str
    """`models/{model}/versions/{version}`: the version that answered; empty when a checkpoint of a job did."""
    timing: Timing
    provenance: Provenance
    class_names: Mapping[str, tuple[str, ...]]
    """For outputs of class scores: what each position of the last axis stands for."""
    staleness: Staleness | None = None
    """When a checkpoint of a job answered."""
    members: tuple[MemberAnswer, ...] = ()
    """When an ensemble answered: what each of its members did."""
    is_from_cache: bool = False
    """Whether it was computed for an earlier call with the same question."""

    @property
    def answered_by(self) -> str:
        """The version that answered, or the checkpoint: `trainingJobs/{job}@step:{step}`."""
        return self.model_version or f"{self.provenance.training_job}@step:{self.provenance.training_step}"

    @property
    def output(self) -> Array:
        """The sole output, or the first of the model's signature."""
        return next(iter(self.outputs.values()))

    @property
    def labels(self) -> list[str]:
        """The best class of each row, for models that say what their scores stand for; else LookupError."""
        for name, classes in self.class_names.items():
            if name in self.outputs:
                array = self.outputs[name]
                indices = array if array.dtype.kind in "iu" else np.argmax(array, axis=-1)
                return [classes[index] for index in np.ravel(indices)]
        raise LookupError(f"no output of {self.answered_by} has class names")


@dataclass(frozen=True, slots=True, eq=False)
class StreamedPrediction:
    """One answer of `predict_stream`: a prediction or an error, never both."""

    index: int
    """The place of its input among all inputs, from 0."""
    prediction: Prediction | None
    error: HeadraceError | None

    def unwrap(self) -> Prediction:
        """The prediction; raises the error instead if there is one."""
        if self.prediction is None:
            assert self.error is not None
            raise self.error
        return self.prediction


@dataclass(frozen=True, slots=True)
class ModelSignature:
    """What one version accepts and returns."""

    model_version: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def read_prediction(response: pb.PredictResponse, signature: ModelSignature, total_seconds: float) -> Prediction:
    """The contract's answer as a value; outputs in the order of `signature`, unknown ones after them."""
    known = [spec.name for spec in signature.outputs if spec.name in response.outputs]
    names = known + sorted(name for name in response.outputs if name not in known)
    return Prediction(
        outputs={name: from_tensor(response.outputs[name]) for name in names},
        model_version=response.model_version,
        timing=_timing(response.timing, total_seconds),
        provenance=_provenance(response.provenance),
        class_names={spec.name: tuple(spec.class_names) for spec in signature.outputs if spec.class_names},
        staleness=(
            Staleness(response.staleness.steps, _seconds(response.staleness.age))
            if response.HasField("staleness")
            else None
        ),
        members=tuple(map(_member, response.members)),
        is_from_cache=response.from_cache,
    )


def _timing(timing: pb.Timing, total_seconds: float | None = None) -> Timing:
    spans = (timing.queue, timing.assemble, timing.compute, timing.respond)
    queue, assemble, compute, respond = map(_seconds, spans)
    return Timing(
        queue_seconds=queue,
        assemble_seconds=assemble,
        compute_seconds=compute,
        respond_seconds=respond,
        batch_rows=timing.batch_rows,
        batch_calls=timing.batch_calls,
        total_seconds=queue + assemble + compute + respond if total_seconds is None else total_seconds,
    )


def _provenance(provenance: pb.Provenance) -> Provenance:
    return Provenance(
        artifact_digest=provenance.artifact_digest,
        backend=provenance.backend,
        precision=_PRECISIONS.get(provenance.precision, str(provenance.precision)),
        device=provenance.device,
        training_job=provenance.training_job,
        training_step=provenance.training_step,
        checkpoint_digest=provenance.checkpoint_digest,
    )


def _member(member: pb.MemberAnswer) -> MemberAnswer:
    return MemberAnswer(
        name=member.name,
        model_version=member.model_version,
        timing=_timing(member.timing),
        provenance=_provenance(member.provenance),
        members=tuple(map(_member, member.members)),
    )


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9


_PRECISIONS: Mapping[int, str] = {number: name.removeprefix("PRECISION_").lower() for name, number in Precision.items()}
