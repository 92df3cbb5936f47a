"""Predictions, between the contract's messages and the engine's values, both ways."""

from dataclasses import dataclass

from google.protobuf.duration_pb2 import Duration

from headrace.inference.v1 import inference_service_pb2 as pb
from headrace.type.v1 import tensor_pb2
from headrace_server.errors import InvalidName, InvalidSpec, InvalidTensor, Violation
from headrace_server.inference.prediction import MemberAnswer, ModelStatus, Prediction, Provenance, Timing
from headrace_server.models.version import ModelVersion
from headrace_server.names import ModelName, SnapshotName, parse_predictable
from headrace_server.precision import Precision
from headrace_server.rpc.status import status_of
from headrace_server.rpc.wire.tensors import num_values, spec_to_proto, tensors_from_proto, write_tensor
from headrace_server.tensors import Tensors

PRIORITIES = range(-100, 101)
MANY_VALUES = 16_384
"""Reading or writing so many elements one by one takes about a millisecond: too long for the event loop."""

_PRECISIONS = {precision: tensor_pb2.Precision.Value(f"PRECISION_{precision.name}") for precision in Precision}
_Format = pb.PredictRequest.ContentFormat
_FORMATS = frozenset(_Format.values())
_NANOS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Question:
    """A PredictRequest in the engine's words."""

    name: ModelName
    inputs: Tensors
    output_names: tuple[str, ...]
    priority: int
    as_values: bool
    """Whether the answer is to be readable."""


def is_heavy(request: pb.PredictRequest) -> bool:
    """Whether reading the request would hold up the event loop."""
    return num_values(request.inputs.values()) > MANY_VALUES


def is_heavy_answer(prediction: Prediction, as_values: bool) -> bool:
    """Whether writing the answer would hold up the event loop."""
    return as_values and sum(array.size for array in prediction.outputs.values()) > MANY_VALUES


def question_from_proto(request: pb.PredictRequest) -> Question:
    """Read a request.  Raises InvalidName, InvalidTensor or InvalidSpec with everything that is wrong at once."""
    name: ModelName | None = None
    unnamed: InvalidName | None = None
    try:
        name = parse_predictable(request.model, "model")
    except InvalidName as error:
        unnamed = error
    wrong: list[Violation] = []
    if request.priority not in PRIORITIES:
        wrong.append(Violation("priority", f"is {request.priority}, must lie between -100 and 100"))
    if request.content_format not in _FORMATS:
        wrong.append(Violation("content_format", "is not a format that this server knows"))
    inputs, misfits = tensors_from_proto(request.inputs)
    if misfits:
        raise InvalidTensor([*(unnamed.violations if unnamed else ()), *wrong, *misfits], request.model)
    if wrong:
        raise InvalidSpec([*(unnamed.violations if unnamed else ()), *wrong])
    if name is None:
        assert unnamed is not None
        raise unnamed
    return Question(name, inputs, tuple(request.output_names), request.priority, _wants_values(request))


def prediction_to_proto(prediction: Prediction, *, as_values: bool) -> pb.PredictResponse:
    """The answer with its timing and provenance."""
    response = frame_to_proto(prediction.version, prediction.provenance)
    response.timing.CopyFrom(_timing_to_proto(prediction.timing))
    response.from_cache = prediction.is_from_cache
    if prediction.staleness is not None:
        response.staleness.steps = prediction.staleness.steps
        response.staleness.age.CopyFrom(_span(prediction.staleness.age_seconds))
    response.members.extend(map(_member_to_proto, prediction.members))
    for output, array in prediction.outputs.items():
        write_tensor(array, response.outputs[output], as_values=as_values)
    return response


def frame_to_proto(version: ModelVersion, provenance: Provenance) -> pb.PredictResponse:
    """What all answers of one program have in common."""
    return pb.PredictResponse(
        model_version=str(version.name) if not isinstance(version.name, SnapshotName) else "",
        provenance=_provenance_to_proto(provenance),
    )


def status_to_proto(status: ModelStatus) -> pb.GetModelStatusResponse:
    """How a model is."""
    signature = status.version.signature
    return pb.GetModelStatusResponse(
        model_version=str(status.version.name),
        readiness=pb.GetModelStatusResponse.Readiness.Value(f"READINESS_{status.readiness.name}"),
        failure=status_of(status.failure) if status.failure is not None else None,
        inputs=map(spec_to_proto, signature.inputs),
        outputs=map(spec_to_proto, signature.outputs),
        calls_in_flight=status.calls_in_flight,
        backend=status.backend,
    )


def _wants_values(request: pb.PredictRequest) -> bool:
    if request.content_format == _Format.CONTENT_FORMAT_UNSPECIFIED:
        return any(tensor.WhichOneof("content") != "data" for tensor in request.inputs.values())
    return request.content_format == _Format.CONTENT_FORMAT_VALUES


def _timing_to_proto(timing: Timing) -> pb.Timing:
    return pb.Timing(
        queue=_span(timing.queue_seconds),
        assemble=_span(timing.assemble_seconds),
        compute=_span(timing.compute_seconds),
        respond=_span(timing.respond_seconds),
        batch_rows=timing.batch_rows,
        batch_calls=timing.batch_calls,
    )


def _member_to_proto(member: MemberAnswer) -> pb.MemberAnswer:
    return pb.MemberAnswer(
        name=member.name,
        model_version=str(member.version.name),
        timing=_timing_to_proto(member.timing),
        provenance=_provenance_to_proto(member.provenance),
        members=map(_member_to_proto, member.members),
    )


def _span(seconds: float) -> Duration:
    """A measured span, to the nanosecond; the short way, for the hot path."""
    whole, nanos = divmod(round(seconds * _NANOS), _NANOS)
    return Duration(seconds=whole, nanos=nanos)


def _provenance_to_proto(provenance: Provenance) -> pb.Provenance:
    return pb.Provenance(
        artifact_digest=provenance.artifact_digest,
        backend=provenance.backend,
        precision=_PRECISIONS[provenance.precision],
        device=provenance.device,
        training_job=provenance.training_job,
        training_step=provenance.training_step,
        checkpoint_digest=provenance.checkpoint_digest,
    )
