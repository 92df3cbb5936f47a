"""Predictions, between the Open Inference Protocol and the engine's values, both ways.

Parameters that would change what is computed or where it lies, and that this server does not heed, are refused rather
than ignored.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode

from headrace_server.errors import InvalidName, InvalidSpec, InvalidTensor, Violation
from headrace_server.inference.prediction import Prediction, Provenance
from headrace_server.models.snapshot import Snapshot
from headrace_server.models.version import ModelVersion
from headrace_server.names import ModelName, SnapshotName
from headrace_server.rpc.open_inference import grpc_predict_v2_pb2 as pb
from headrace_server.rpc.wire.inference import MANY_VALUES, PRIORITIES
from headrace_server.rpc.wire.open_inference_tensors import (
    must_be_raw,
    num_singles,
    tensors_from_request,
    write_outputs,
)
from headrace_server.tensors import Tensors

HIGHEST_LEVEL = 1
LOWEST_LEVEL = HIGHEST_LEVEL + PRIORITIES[-1] - PRIORITIES[0]
DEFAULT_LEVEL = HIGHEST_LEVEL + PRIORITIES[-1]
"""The protocol's priorities count downwards from the highest; this is the engine's 0."""
MANY_TENSORS = 256
MOST_TENSORS = 16_384
"""More than any model has; looking at all that fit into a message would take half a minute."""
FINAL = "triton_final_response"

_CODES = {code.value[0]: code.name for code in StatusCode}
_MICROSECONDS = 1_000_000
_MODEL_FORMS = "{model} or {model}@{alias}"
_NOT_FOR_OUTPUTS = {
    "classification": "classification is not offered: ask for the scores",
    "shared_memory_region": "shared memory is not offered: outputs come with the answer",
}


@dataclass(frozen=True, slots=True)
class OpenQuestion:
    """A ModelInferRequest in the engine's words."""

    name: ModelName
    inputs: Tensors
    output_names: tuple[str, ...]
    priority: int
    timeout_seconds: float | None
    """The longest wait; None for no limit of its own."""
    is_raw: bool
    """Whether the answer is to be raw."""


def name_of(model: str, version: str, field: str = "model_name") -> ModelName:
    """Read the protocol's two parts of a name; the version may be empty.  Raises InvalidName or InvalidSpec.

    A checkpoint of a job is the model "trainingJobs/{job}" in the version "latest", which is meant when there is none,
    "best", or "step:{step}"; or the model "trainingJobs/{job}@latest" and so on, without a version.
    """
    if model.startswith("trainingJobs/"):
        return _snapshot_name(model, version, field)
    try:
        name = ModelName.parse(f"models/{model}")
    except InvalidName:
        raise InvalidName(model, _MODEL_FORMS, field) from None
    if name.version is not None:
        raise InvalidName(model, _MODEL_FORMS, field)
    if not version:
        return name
    field = field.replace("name", "version")
    if name.alias is not None:
        raise InvalidSpec([Violation(field, f"must be empty when the model is named by an alias, {model!r}")])
    try:
        return ModelName.parse(f"{name}/versions/{version}")
    except InvalidName:
        raise InvalidName(version, "a number from 1", field) from None


def _snapshot_name(model: str, version: str, field: str) -> SnapshotName:
    if "@" not in model:
        return SnapshotName.parse(f"{model}@{version or 'latest'}", field)
    if version:
        problem = f"must be empty when the checkpoint is named by the model, {model!r}"
        raise InvalidSpec([Violation(field.replace("name", "version"), problem)])
    return SnapshotName.parse(model, field)


def is_heavy_request(request: pb.ModelInferRequest) -> bool:
    """Whether reading the request would hold up the event loop."""
    num_tensors = len(request.inputs) + len(request.outputs)
    if num_tensors > MANY_TENSORS:
        return num_tensors <= MOST_TENSORS  # more are refused at a glance
    return num_singles(request) > MANY_VALUES


def is_heavy_response(prediction: Prediction, is_raw: bool) -> bool:
    """Whether writing the response would hold up the event loop."""
    arrays = prediction.outputs.values()
    return sum(array.size for array in arrays if not is_raw or array.dtype == object) > MANY_VALUES


def question_from_request(request: pb.ModelInferRequest) -> OpenQuestion:
    """Read a request.  Raises InvalidName, InvalidTensor or InvalidSpec; of tensors, all that is wrong at once."""
    name = name_of(request.model_name, request.model_version)
    wrong: list[Violation] = []
    if len(request.inputs) + len(request.outputs) > MOST_TENSORS:
        raise InvalidSpec([Violation("inputs", f"with the outputs, at most {MOST_TENSORS:,} can be named")])
    priority = _priority(request.parameters, wrong)
    timeout_seconds = _timeout_seconds(request.parameters, wrong)
    _refuse_sequences(request.parameters, wrong)
    output_names = _output_names(request.outputs, wrong)
    inputs, misfits = tensors_from_request(request)
    if misfits:
        raise InvalidTensor([*wrong, *misfits], request.model_name)
    if wrong:
        raise InvalidSpec(wrong)
    is_raw = bool(request.raw_input_contents) or not request.inputs
    return OpenQuestion(name, inputs, output_names, priority, timeout_seconds, is_raw)


def response_of(prediction: Prediction, request_id: str, *, is_raw: bool) -> pb.ModelInferResponse:
    """The answer, with its timing and provenance as parameters."""
    timing, provenance = prediction.timing, prediction.provenance
    response = frame_of(prediction.version, provenance)
    response.id = request_id
    parameters = response.parameters
    if prediction.is_from_cache:
        parameters["headrace_from_cache"].bool_param = True
    if prediction.staleness is not None:
        parameters["headrace_checkpoint_digest"].string_param = provenance.checkpoint_digest
        parameters["headrace_steps_behind"].int64_param = prediction.staleness.steps
        parameters["headrace_age_us"].int64_param = _microseconds(prediction.staleness.age_seconds)
    parameters["headrace_queue_us"].int64_param = _microseconds(timing.queue_seconds)
    parameters["headrace_assemble_us"].int64_param = _microseconds(timing.assemble_seconds)
    parameters["headrace_compute_us"].int64_param = _microseconds(timing.compute_seconds)
    parameters["headrace_respond_us"].int64_param = _microseconds(timing.respond_seconds)
    parameters["headrace_batch_rows"].int64_param = timing.batch_rows
    write_outputs(prediction.outputs, response, is_raw=is_raw or must_be_raw(prediction.outputs))
    return response


def frame_of(version: ModelVersion, provenance: Provenance) -> pb.ModelInferResponse:
    """What all answers of one program have in common."""
    response = pb.ModelInferResponse(model_name=version.model, model_version=label_of(version))
    parameters = response.parameters
    parameters["headrace_artifact_digest"].string_param = provenance.artifact_digest
    parameters["headrace_backend"].string_param = provenance.backend
    parameters["headrace_precision"].string_param = provenance.precision
    parameters["headrace_device"].string_param = provenance.device
    return response


def label_of(version: ModelVersion) -> str:
    """A version in the protocol's words: its number, or the step of a checkpoint."""
    return f"step:{version.version}" if isinstance(version, Snapshot) else str(version.version)


def answer_of(response: pb.ModelInferResponse) -> pb.ModelStreamInferResponse:
    """An answer of a stream; the only one that its request gets."""
    response.parameters[FINAL].bool_param = True
    return pb.ModelStreamInferResponse(infer_response=response)


def refusal_of(status: status_pb2.Status, request_id: str) -> pb.ModelStreamInferResponse:
    """A failure as an answer of a stream."""
    code = _CODES.get(status.code, StatusCode.UNKNOWN.name)
    answer = pb.ModelStreamInferResponse(error_message=status.message or code)
    answer.infer_response.id = request_id
    parameters = answer.infer_response.parameters
    parameters[FINAL].bool_param = True
    parameters["headrace_code"].string_param = code
    info = error_details_pb2.ErrorInfo()
    if any(detail.Unpack(info) for detail in status.details):
        parameters["headrace_reason"].string_param = info.reason
    return answer


def _priority(parameters: Mapping[str, pb.InferParameter], wrong: list[Violation]) -> int:
    level = _whole_number(parameters, "priority", wrong)
    if not level:
        return 0
    if level not in range(HIGHEST_LEVEL, LOWEST_LEVEL + 1):
        wrong.append(
            Violation(
                'parameters["priority"]',
                f"is {level}, must lie between {HIGHEST_LEVEL}, the highest, and {LOWEST_LEVEL}, or be 0",
            )
        )
    return DEFAULT_LEVEL - level


def _timeout_seconds(parameters: Mapping[str, pb.InferParameter], wrong: list[Violation]) -> float | None:
    microseconds = _whole_number(parameters, "timeout", wrong)
    if microseconds is not None and microseconds < 0:
        wrong.append(Violation('parameters["timeout"]', f"is {microseconds}, must not be negative"))
    return microseconds / _MICROSECONDS if microseconds else None


def _whole_number(parameters: Mapping[str, pb.InferParameter], key: str, wrong: list[Violation]) -> int | None:
    if key not in parameters:  # a look-up of what is not there would add it
        return None
    parameter = parameters[key]
    kind = parameter.WhichOneof("parameter_choice")
    if kind == "int64_param":
        return parameter.int64_param
    if kind == "uint64_param":
        return parameter.uint64_param
    wrong.append(Violation(f'parameters["{key}"]', "must be an int64_param or a uint64_param"))
    return None


def _refuse_sequences(parameters: Mapping[str, pb.InferParameter], wrong: list[Violation]) -> None:
    if "sequence_id" not in parameters:
        return
    parameter = parameters["sequence_id"]
    if parameter.int64_param or parameter.uint64_param or parameter.string_param:
        wrong.append(
            Violation('parameters["sequence_id"]', "models keep nothing between requests: there are no sequences")
        )


def _output_names(
    outputs: Iterable[pb.ModelInferRequest.InferRequestedOutputTensor], wrong: list[Violation]
) -> tuple[str, ...]:
    names: dict[str, None] = {}
    for output in outputs:
        field = f'outputs["{output.name}"]'
        if output.name in names:
            wrong.append(Violation(field, "is asked for twice"))
        names[output.name] = None
        wrong += [Violation(field, problem) for key, problem in _NOT_FOR_OUTPUTS.items() if key in output.parameters]
    return tuple(names)


def _microseconds(seconds: float) -> int:
    return round(seconds * _MICROSECONDS)
