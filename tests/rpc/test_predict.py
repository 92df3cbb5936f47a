import time
from datetime import timedelta

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from headrace.inference.v1 import inference_service_pb2 as pb
from headrace.type.v1 import tensor_pb2
from headrace_server.errors import InvalidModel, NoPermit
from tests.doubles.door import open_door
from tests.doubles.until import until

FLOATS = tensor_pb2.Tensor(
    data_type=tensor_pb2.DATA_TYPE_FP32, shape=[2, 2], floats=tensor_pb2.FloatValues(values=[1, 2, 3, 4.5])
)
BYTES = tensor_pb2.Tensor(
    data_type=tensor_pb2.DATA_TYPE_FP32, shape=[1, 2], data=np.array([1, 2], dtype="<f4").tobytes()
)


def details_of(error: grpc.aio.AioRpcError, kind: type) -> object:
    status = rpc_status.from_call(error)
    for detail in status.details:
        message = kind()
        if detail.Unpack(message):
            return message
    raise AssertionError(f"no {kind.__name__} in {status}")


async def test_values_are_answered_with_values_and_bytes_with_bytes() -> None:
    async with open_door() as door:
        readable = await door.inference.Predict(pb.PredictRequest(model="models/echo", inputs={"x": FLOATS}))
        compact = await door.inference.Predict(pb.PredictRequest(model="models/echo", inputs={"x": BYTES}))

        assert list(readable.outputs["x"].floats.values) == [1, 2, 3, 4.5]
        assert compact.outputs["x"].data == BYTES.data
        assert readable.model_version == "models/echo/versions/3"
        assert readable.timing.batch_rows == 8
        assert readable.timing.compute.nanos == 3_000_000
        assert readable.provenance.precision == tensor_pb2.PRECISION_FP32


async def test_the_answer_comes_in_the_format_that_was_asked_for() -> None:
    async with open_door() as door:
        answer = await door.inference.Predict(
            pb.PredictRequest(
                model="models/echo@champion",
                inputs={"x": BYTES},
                output_names=["x"],
                content_format=pb.PredictRequest.CONTENT_FORMAT_VALUES,
                priority=-5,
            )
        )

        assert list(answer.outputs["x"].floats.values) == [1, 2]
        name, _, output_names, deadline, priority = door.engine.calls[0]
        assert (str(name), output_names, deadline, priority) == ("models/echo@champion", ("x",), None, -5)


async def test_the_deadline_of_the_call_reaches_the_engine() -> None:
    async with open_door() as door:
        before = time.monotonic()

        await door.inference.Predict(pb.PredictRequest(model="models/echo", inputs={"x": BYTES}), timeout=20)

        deadline = door.engine.calls[0][3]
        assert deadline is not None
        assert before < deadline < time.monotonic() + 20.5


async def test_everything_that_is_wrong_with_a_request_is_said_at_once() -> None:
    short = tensor_pb2.Tensor(data_type=tensor_pb2.DATA_TYPE_FP32, shape=[3], data=b"1234")
    async with open_door() as door:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await door.inference.Predict(
                pb.PredictRequest(model="model/echo", inputs={"a": short, "b": tensor_pb2.Tensor()}, priority=101)
            )

        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        request = details_of(caught.value, error_details_pb2.BadRequest)
        assert isinstance(request, error_details_pb2.BadRequest)
        fields = {violation.field for violation in request.field_violations}
        assert fields == {"model", "priority", 'inputs["a"].data', 'inputs["b"].data_type'}
        info = details_of(caught.value, error_details_pb2.ErrorInfo)
        assert isinstance(info, error_details_pb2.ErrorInfo)
        assert (info.reason, info.domain, info.metadata["violations"]) == ("INVALID_TENSOR", "headrace.dev", "4")


async def test_a_call_that_is_shed_says_when_to_try_again() -> None:
    async with open_door() as door:
        door.engine.failure = NoPermit("models/echo/versions/3", 10, 10, timedelta(milliseconds=250))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await door.inference.Predict(pb.PredictRequest(model="models/echo", inputs={"x": BYTES}))

        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        retry = details_of(caught.value, error_details_pb2.RetryInfo)
        assert isinstance(retry, error_details_pb2.RetryInfo)
        assert retry.retry_delay.nanos == 250_000_000


async def test_a_fault_of_ours_shows_an_id_and_nothing_else() -> None:
    async with open_door() as door:
        door.engine.failure = ZeroDivisionError("the secret formula")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await door.inference.Predict(pb.PredictRequest(model="models/echo", inputs={"x": BYTES}))

        assert caught.value.code() is grpc.StatusCode.INTERNAL
        assert "secret" not in str(caught.value)
        info = details_of(caught.value, error_details_pb2.ErrorInfo)
        assert isinstance(info, error_details_pb2.ErrorInfo)
        assert len(info.metadata["error_id"]) == 8
        assert door.metrics.registry.get_sample_value("headrace_internal_errors_total") == 1


async def test_a_caller_who_hangs_up_takes_his_prediction_with_him() -> None:
    async with open_door() as door:
        door.engine.hold()
        call = door.inference.Predict(pb.PredictRequest(model="models/echo", inputs={"x": BYTES}))
        await door.engine.was_asked(1)

        call.cancel()

        await until(lambda: door.engine.num_left == 1)


async def test_a_large_readable_request_is_read_away_from_the_loop() -> None:
    values = tensor_pb2.FloatValues(values=np.zeros(40_000).tolist())
    tensor = tensor_pb2.Tensor(data_type=tensor_pb2.DATA_TYPE_FP64, shape=[20_000, 2], floats=values)
    async with open_door() as door:
        answer = await door.inference.Predict(pb.PredictRequest(model="models/echo", inputs={"x": tensor}))

        assert len(answer.outputs["x"].floats.values) == 40_000


async def test_a_message_over_the_limit_is_refused_before_it_is_read() -> None:
    async with open_door(max_message_bytes=2 << 20) as door:
        big = tensor_pb2.Tensor(data_type=tensor_pb2.DATA_TYPE_INT8, shape=[3 << 20], data=b"0" * (3 << 20))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await door.inference.Predict(pb.PredictRequest(model="models/echo", inputs={"x": big}))

        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert door.engine.calls == []


async def test_the_status_of_a_model_shows_its_signature_and_its_failure() -> None:
    async with open_door() as door:
        ready = await door.inference.GetModelStatus(pb.GetModelStatusRequest(model="models/echo"))
        door.engine.model_failure = InvalidModel("not an ONNX file")
        failed = await door.inference.GetModelStatus(pb.GetModelStatusRequest(model="models/echo"))

        assert ready.readiness == pb.GetModelStatusResponse.READINESS_READY
        assert not ready.HasField("failure")
        assert list(ready.inputs[0].shape) == [-1, 2]
        assert ready.inputs[0].finite_only
        assert list(ready.outputs[0].class_names) == ["no", "yes"]
        assert failed.readiness == pb.GetModelStatusResponse.READINESS_FAILED
        assert failed.failure.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]


async def test_an_answer_over_the_limit_is_said_to_be_one() -> None:
    values = np.zeros(200_000, "<f8")
    tensor = tensor_pb2.Tensor(data_type=tensor_pb2.DATA_TYPE_FP64, shape=[100_000, 2], data=values.tobytes())
    many = {str(number): tensor for number in range(1)}
    async with open_door(max_message_bytes=2 << 20) as door:
        door.engine.grow = 3
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await door.inference.Predict(pb.PredictRequest(model="models/echo", inputs=many))

        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
