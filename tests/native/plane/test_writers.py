"""The native writers beside the complete server's: the same messages, whatever they hold."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from google.protobuf import text_format
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from hypothesis import example, given, strategies as st

from headrace.inference.v1 import inference_service_pb2 as predict_pb
from headrace_server._native import plane_testing as native
from headrace_server.errors import Draining, ExpiredInQueue, HeadraceError, InvalidSpec, NoPermit, TimedOut, Violation
from headrace_server.inference.prediction import Prediction, Provenance, Timing
from headrace_server.models.version import ModelVersion
from headrace_server.precision import Precision
from headrace_server.rpc.open_inference import grpc_predict_v2_pb2 as infer_pb
from headrace_server.rpc.status import status_of
from headrace_server.rpc.wire.inference import prediction_to_proto
from headrace_server.rpc.wire.open_inference import answer_of, refusal_of, response_of
from headrace_server.tensors import Array, DataType, Signature
from tests.native.plane.messages import NUMBERS, TYPED, arrays, cut, names

PREDICT, PREDICT_STREAM, INFER, INFER_STREAM = range(4)
PROVENANCE = Provenance("sha256:00ff", "onnxruntime", Precision.FP32, "cpu", "trainingJobs/j")
VERSION = ModelVersion(
    model="digits",
    version=3,
    signature=Signature(inputs=(), outputs=()),
    artifacts=(),
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
)

times = st.floats(0, 1e5).map(lambda seconds: round(seconds, 9))
outputs = st.dictionaries(names, arrays(), min_size=1, max_size=3)
readable_outputs = st.dictionaries(
    names, arrays([kind for kind in NUMBERS if not kind.startswith("FP8")]), min_size=1, max_size=3
)
typed_outputs = st.dictionaries(names, arrays([*TYPED]), min_size=1, max_size=3)


@st.composite
def timings(draw: st.DrawFn) -> Timing:
    queue, assemble, compute, respond = draw(st.tuples(times, times, times, times))
    return Timing(queue, assemble, compute, respond, draw(st.integers(1, 1024)), draw(st.integers(1, 1024)))


def write(
    form: int, prediction: Prediction, request_id: str = "", *, slices: list[int] | None = None, is_raw: bool = True
) -> bytes:
    """The native answer, as if the model had returned it in slices of so many rows."""
    timing = prediction.timing
    return native.write_answer(
        form,
        request_id,
        [(name, str(DataType.of(a.dtype)), a.shape, a.tobytes()) for name, a in prediction.outputs.items()],
        slices or [],
        is_raw,
        (
            timing.queue_seconds,
            timing.assemble_seconds,
            timing.compute_seconds,
            timing.respond_seconds,
            timing.batch_rows,
            timing.batch_calls,
        ),
        *static_parts(),
    )


def static_parts() -> tuple[bytes, bytes]:
    """What of an answer is the same for every call."""
    empty = Prediction(VERSION, {}, Timing(0, 0, 0, 0, 0, 0), PROVENANCE)
    predict = prediction_to_proto(empty, as_values=False)
    predict.ClearField("timing")
    infer = response_of(empty, "", is_raw=True)
    for key in [*infer.parameters]:
        if key.endswith(("_us", "_rows")):
            del infer.parameters[key]
    return predict.SerializeToString(), infer.SerializeToString()


SIGNALING_NAN = np.array([0x7C01], np.uint16).view(np.float16)


@given(readable_outputs, timings(), names, st.booleans())
@example({"y": SIGNALING_NAN}, Timing(0, 0, 0, 0, 1, 1), "", False)
def test_a_predict_response_is_the_one_of_the_complete_server(
    found: dict[str, Array], timing: Timing, request_id: str, is_raw: bool
) -> None:
    prediction = Prediction(VERSION, found, timing, PROVENANCE)
    whole = prediction_to_proto(prediction, as_values=not is_raw)

    assert same(predict_pb.PredictResponse.FromString(write(PREDICT, prediction, is_raw=is_raw)), whole)
    content = write(PREDICT_STREAM, prediction, request_id, is_raw=is_raw)
    streamed = predict_pb.PredictStreamResponse.FromString(content)
    assert same(streamed, predict_pb.PredictStreamResponse(id=request_id, response=whole))


@given(outputs | typed_outputs, timings(), names, st.booleans())
def test_an_infer_response_is_the_one_of_the_complete_server(
    found: dict[str, Array], timing: Timing, request_id: str, is_raw: bool
) -> None:
    prediction = Prediction(VERSION, found, timing, PROVENANCE)
    whole = response_of(prediction, request_id, is_raw=is_raw)

    assert same(infer_pb.ModelInferResponse.FromString(write(INFER, prediction, request_id, is_raw=is_raw)), whole)
    streamed = infer_pb.ModelStreamInferResponse.FromString(write(INFER_STREAM, prediction, request_id, is_raw=is_raw))
    assert same(streamed, answer_of(whole))


@pytest.mark.parametrize("data_type", NUMBERS)
@pytest.mark.parametrize("is_raw", [True, False])
@given(slices=st.lists(st.integers(1, 5), min_size=1, max_size=5))
def test_rows_that_come_in_slices_lie_in_order(data_type: DataType, is_raw: bool, slices: list[int]) -> None:
    rows = sum(slices)
    if data_type is DataType.BOOL:
        array: Array = np.arange(rows * 3).reshape(rows, 3) % 2 == 0
    else:
        array = np.arange(rows * 3).reshape(rows, 3).astype(data_type.dtype)
    prediction = Prediction(VERSION, {"y": array}, Timing(0.1, 0.2, 0.3, 0.4, rows, 1), PROVENANCE)

    written = write(INFER, prediction, "7", slices=slices, is_raw=is_raw)

    assert same(infer_pb.ModelInferResponse.FromString(written), response_of(prediction, "7", is_raw=is_raw))
    if is_raw or not data_type.startswith("FP8"):
        predicted = write(PREDICT, prediction, slices=slices, is_raw=is_raw)
        whole = prediction_to_proto(prediction, as_values=not is_raw)
        assert same(predict_pb.PredictResponse.FromString(predicted), whole)


@pytest.mark.parametrize("size", [0, 1, 100, 110, 120, 126, 127, 128, 16_000, 16_200, 16_383, 16_384, 2_097_000])
def test_an_answer_of_a_stream_has_its_length_before_it_whatever_that_is(size: int) -> None:
    array = np.zeros(size, dtype=np.uint8)
    prediction = Prediction(VERSION, {"y": array}, Timing(0, 0, 0, 0, 1, 1), PROVENANCE)
    for extra in range(40):
        request_id = "i" * extra
        whole = answer_of(response_of(prediction, request_id, is_raw=True))
        written = write(INFER_STREAM, prediction, request_id)
        assert same(infer_pb.ModelStreamInferResponse.FromString(written), whole)


@given(st.text(max_size=80), st.floats(0, 1e6), st.integers(0, 10**9), st.integers(1, 10**9), st.floats(0, 1e4))
def test_refusals_of_the_batcher_are_told_as_the_complete_server_tells_them(
    why: str, seconds: float, rows: int, limit: int, retry_seconds: float
) -> None:
    name = str(VERSION.name)
    full = native.refusal_status(False, why, seconds, rows, limit, retry_seconds, name)
    late = native.refusal_status(True, why, seconds, rows, limit, retry_seconds, name)

    assert told(full) == expected(NoPermit(name, rows, limit, timedelta(seconds=retry_seconds), why))
    assert told(late) == expected(ExpiredInQueue(seconds * 1000))


@given(st.floats(0, 1e9), st.text(max_size=300), st.text(min_size=1, max_size=600))
def test_refusals_of_a_stream_are_told_as_the_complete_server_tells_them(
    seconds: float, field: str, description: str
) -> None:
    assert told(native.timed_out(seconds)) == expected(TimedOut(seconds))
    assert told(native.draining()) == expected(Draining())
    assert told(native.invalid_spec(field, description)) == expected(InvalidSpec([Violation(field, description)]))


@given(st.text(st.characters(max_codepoint=126)))
def test_a_text_is_quoted_as_python_shows_it(text: str) -> None:
    assert native.quote(text) == repr(text)


@given(outputs, names, st.data())
def test_what_was_passed_on_comes_back_as_part_of_the_stream(
    found: dict[str, Array], request_id: str, data: st.DataObject
) -> None:
    prediction = Prediction(VERSION, found, Timing(1, 2, 3, 4, 5, 6), PROVENANCE)
    response = prediction_to_proto(prediction, as_values=False)
    infer = response_of(prediction, request_id, is_raw=False)

    mine = native.predict_answer(request_id, data.draw(cut(response.SerializeToString())))
    other = native.infer_answer(data.draw(cut(infer.SerializeToString())))

    assert same(
        predict_pb.PredictStreamResponse.FromString(mine),
        predict_pb.PredictStreamResponse(id=request_id, response=response),
    )
    assert same(infer_pb.ModelStreamInferResponse.FromString(other), answer_of(infer))


@given(names, st.sampled_from([ExpiredInQueue(12.0), Draining(), InvalidSpec([Violation("a", "b")])]))
def test_a_failure_becomes_an_answer_of_the_stream(request_id: str, error: HeadraceError) -> None:
    status = status_of(error)
    whole = (status.code, status.message, status.SerializeToString())

    predicted = predict_pb.PredictStreamResponse.FromString(native.predict_refusal(request_id, *whole))
    inferred = infer_pb.ModelStreamInferResponse.FromString(native.infer_refusal(request_id, *whole))

    assert predicted == predict_pb.PredictStreamResponse(id=request_id, error=status)
    assert inferred == refusal_of(status, request_id)


def test_a_failure_without_details_becomes_an_answer_of_the_stream() -> None:
    status = status_pb2.Status(code=4, message="")

    inferred = infer_pb.ModelStreamInferResponse.FromString(native.infer_refusal("7", 4, "", b""))

    assert inferred == refusal_of(status, "7")
    assert predict_pb.PredictStreamResponse.FromString(native.predict_refusal("7", 4, "", b"")).error == status


def told(native_status: tuple[int, str, bytes]) -> list[object]:
    code, message, details = native_status
    read = status_pb2.Status.FromString(details)
    assert (read.code, read.message) == (code, message)
    return in_words(read)


def expected(error: HeadraceError) -> list[object]:
    return in_words(status_of(error))


def in_words(status: status_pb2.Status) -> list[object]:
    """A status with its details unpacked, in which the entries of a map have no order."""
    kinds = (error_details_pb2.ErrorInfo, error_details_pb2.RetryInfo, error_details_pb2.BadRequest)
    details = []
    for detail in status.details:
        message = next(kind() for kind in kinds if detail.Is(kind.DESCRIPTOR))
        detail.Unpack(message)
        details.append(message)
    return [status.code, status.message, *details]


def same(one: Message, other: Message) -> bool:
    """Whether two messages hold the same, any NaN being the same as any other: who converts one may quiet it."""
    if one.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True):
        return True
    one_text, other_text = (text_format.MessageToString(each, print_unknown_fields=True) for each in (one, other))
    return one_text == other_text


def test_timing_counts_every_nanosecond() -> None:
    prediction = Prediction(VERSION, {}, Timing(1.000000001, 0, 2.5, 1e-9, 1, 1), PROVENANCE)
    prediction = replace(prediction, outputs={"y": np.zeros(1, np.float32)})

    written = predict_pb.PredictResponse.FromString(write(PREDICT, prediction))

    assert (written.timing.queue.seconds, written.timing.queue.nanos) == (1, 1)
    assert (written.timing.compute.seconds, written.timing.compute.nanos) == (2, 500_000_000)
    assert (written.timing.respond.seconds, written.timing.respond.nanos) == (0, 1)
