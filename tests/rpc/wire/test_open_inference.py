import struct
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from google.rpc import error_details_pb2
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as arrays_of

from headrace_server.errors import Draining, Invalid, InvalidName, InvalidSpec, InvalidTensor, ModelFailed
from headrace_server.names import ModelName
from headrace_server.rpc.open_inference import grpc_predict_v2_pb2 as pb
from headrace_server.rpc.status import status_of
from headrace_server.rpc.wire.open_inference import (
    is_heavy_request,
    name_of,
    question_from_request,
    refusal_of,
)
from headrace_server.rpc.wire.open_inference_tensors import must_be_raw, tensors_from_request, write_outputs
from headrace_server.tensors import Array, DataType, Tensors

RAW_ONLY = (DataType.FP16, DataType.BF16, DataType.FP8_E4M3, DataType.FP8_E5M2)
PLAIN = [kind for kind in DataType if kind not in (*RAW_ONLY, DataType.STRING)]
SHAPES = arrays_of.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
TEXTS = st.text(alphabet=st.characters(exclude_categories=["Cs"]))
X = np.array([[1, 2]], "<f4")


def request_with(tensors: Tensors, *, is_raw: bool = True, **fields: Any) -> pb.ModelInferRequest:
    """A request for `m`, its inputs written as this server writes outputs."""
    written = pb.ModelInferResponse()
    write_outputs(tensors, written, is_raw=is_raw)
    return pb.ModelInferRequest(
        model_name="m",
        inputs=[
            pb.ModelInferRequest.InferInputTensor(
                name=output.name, datatype=output.datatype, shape=output.shape, contents=output.contents
            )
            for output in written.outputs
        ],
        raw_input_contents=written.raw_output_contents,
        **fields,
    )


def raw_request(datatype: str, shape: list[int], content: bytes) -> pb.ModelInferRequest:
    return pb.ModelInferRequest(
        model_name="m",
        inputs=[pb.ModelInferRequest.InferInputTensor(name="x", datatype=datatype, shape=shape)],
        raw_input_contents=[content],
    )


def typed_request(datatype: str, shape: list[int], **contents: Any) -> pb.ModelInferRequest:
    tensor = pb.ModelInferRequest.InferInputTensor(
        name="x", datatype=datatype, shape=shape, contents=pb.InferTensorContents(**contents)
    )
    return pb.ModelInferRequest(model_name="m", inputs=[tensor])


def read(request: pb.ModelInferRequest) -> Array:
    tensors, violations = tensors_from_request(pb.ModelInferRequest.FromString(request.SerializeToString()))
    assert violations == []
    return tensors["x"]


def problems(request: pb.ModelInferRequest) -> dict[str, str]:
    with pytest.raises(Invalid) as caught:
        question_from_request(request)
    return {violation.field: violation.description for violation in caught.value.violations}


@given(st.data(), st.sampled_from(PLAIN), st.booleans())
def test_arrays_survive_the_wire(data: st.DataObject, data_type: DataType, is_raw: bool) -> None:
    array = data.draw(arrays_of.arrays(data_type.dtype, SHAPES))

    back = read(request_with({"x": array}, is_raw=is_raw))

    assert back.dtype == data_type.dtype
    np.testing.assert_array_equal(back, array)


@given(st.data(), st.sampled_from(RAW_ONLY))
def test_small_floats_survive_the_wire_bit_for_bit(data: st.DataObject, data_type: DataType) -> None:
    bits = np.dtype(f"u{data_type.dtype.itemsize}")
    array = data.draw(arrays_of.arrays(bits, SHAPES)).view(data_type.dtype)

    back = read(request_with({"x": array}))

    assert must_be_raw({"x": array})
    assert back.dtype == data_type.dtype
    assert back.tobytes() == array.tobytes()


@given(st.lists(TEXTS), st.booleans())
def test_texts_survive_the_wire(texts: list[str], is_raw: bool) -> None:
    array = np.array([*texts, None], dtype=object)[:-1].reshape(-1, 1)

    back = read(request_with({"x": array}, is_raw=is_raw))

    assert back.tolist() == array.tolist()


@given(st.binary(max_size=64), st.lists(st.integers(-2, 2**40), max_size=4), st.sampled_from([*pb.DataType.keys(), ""]))
def test_whatever_arrives_raw_is_read_or_refused(content: bytes, shape: list[int], datatype: str) -> None:
    name = datatype.removeprefix("TYPE_").replace("STRING", "BYTES")
    tensors, violations = tensors_from_request(raw_request(name, shape, content))

    assert bool(tensors) != bool(violations)


def test_raw_numbers_are_not_copied() -> None:
    array = read(raw_request("FP32", [2, 3], np.arange(6, dtype="<f4").tobytes()))

    assert not array.flags.owndata
    assert array.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_raw_text_has_its_length_in_four_bytes_before_it() -> None:
    content = b"\x05\0\0\0hello\0\0\0\0\x02\0\0\0\xc3\xa9"

    assert read(raw_request("BYTES", [3], content)).tolist() == ["hello", "", "é"]


@pytest.mark.parametrize(
    ("request_", "field", "problem"),
    [
        (raw_request("FP32", [2], b"1234"), "raw_input_contents[0]", "2 elements of FP32 at 4 bytes each need 8"),
        (raw_request("FP32", [2], b"123456789"), "raw_input_contents[0]", "holds 9 bytes"),
        (raw_request("FP32", [-1, 2], b""), 'inputs["x"].shape', "must not be negative"),
        (raw_request("FP32", [2**62, 2**62], b""), 'inputs["x"].shape', "no tensor is that large"),
        (raw_request("FP32", [2**63 - 1, 0], b""), 'inputs["x"].shape', "no tensor is that large"),
        (raw_request("FP32", [1] * 33, b"1234"), 'inputs["x"].shape', "at most 32"),
        (raw_request("BOOL", [2], b"\x01\x02"), "raw_input_contents[0]", "must be 0 or 1"),
        (raw_request("FLOAT", [1], b"1234"), 'inputs["x"].datatype', "is 'FLOAT', must be one of FP32"),
        (raw_request("STRING", [1], b"\0\0\0\0"), 'inputs["x"].datatype', "BYTES"),
        (raw_request("BYTES", [2**40], b"\0\0\0\0"), "raw_input_contents[0]", "alone need"),
        (raw_request("BYTES", [1], b"\xff\xff\xff\xffabc"), "raw_input_contents[0]", "claims 4,294,967,295 bytes"),
        (raw_request("BYTES", [1], b"\0\0\0\0abc"), "raw_input_contents[0]", "3 bytes follow the last"),
        (raw_request("BYTES", [2], b"\x03\0\0\0abc\0"), "raw_input_contents[0]", "ends before element 1"),
        (raw_request("BYTES", [1], b"\x01\0\0\0\xff"), "raw_input_contents[0]", "not text in UTF-8"),
        (raw_request("BYTES", [0], b"\0\0\0\0"), "raw_input_contents[0]", "4 bytes follow the last"),
        (typed_request("FP32", [2]), 'inputs["x"].contents', "holds 0 values; the shape needs 2"),
        (typed_request("FP32", [1], fp64_contents=[1]), 'inputs["x"].contents', "travels in fp32_contents"),
        (typed_request("FP16", [1], fp32_contents=[1]), 'inputs["x"].contents', "raw_input_contents only"),
        (typed_request("BF16", [1], fp32_contents=[1]), 'inputs["x"].contents', "raw_input_contents only"),
        (typed_request("INT8", [2], int_contents=[1, 128]), 'inputs["x"].contents', "value 1, 128, is out of"),
        (typed_request("INT16", [1], int_contents=[-32769]), 'inputs["x"].contents', "-32768 to 32767"),
        (typed_request("UINT8", [1], uint_contents=[256]), 'inputs["x"].contents', "0 to 255"),
        (typed_request("BYTES", [1], bytes_contents=[b"\xff"]), 'inputs["x"].contents', "not text in UTF-8"),
    ],
)
def test_what_cannot_be_read_is_refused_under_its_own_field(
    request_: pb.ModelInferRequest, field: str, problem: str
) -> None:
    found = problems(request_)

    assert found.keys() == {field}
    assert problem in found[field]


def test_an_input_that_is_given_twice_is_refused() -> None:
    request = request_with({"x": X})
    request.inputs.append(request.inputs[0])
    request.raw_input_contents.append(request.raw_input_contents[0])

    assert problems(request) == {'inputs["x"]': "is given twice"}


@pytest.mark.parametrize("num_contents", [1, 3])
def test_as_many_raw_contents_as_inputs_are_needed(num_contents: int) -> None:
    request = request_with({"x": X, "z": X})
    request.raw_input_contents[:] = [X.tobytes()] * num_contents

    assert problems(request)["raw_input_contents"] == f"has {num_contents} entries for 2 inputs"


def test_raw_and_typed_inputs_do_not_mix() -> None:
    request = request_with({"x": X})
    request.inputs.add(name="z", datatype="FP32", shape=[1], contents=pb.InferTensorContents(fp32_contents=[1]))
    request.raw_input_contents.append(b"1234")

    assert "must be empty when raw_input_contents is used" in problems(request)['inputs["z"].contents']


def test_typed_contents_that_are_there_but_empty_do_not_count_as_mixing() -> None:
    request = request_with({"x": X})
    request.inputs[0].contents.SetInParent()

    assert question_from_request(request).is_raw


def test_shared_memory_is_refused_rather_than_read_as_something_else() -> None:
    request = request_with({"x": X})
    request.inputs.add(name="z", datatype="FP32", shape=[1]).parameters["shared_memory_region"].string_param = "r"

    assert problems(request).keys() == {'inputs["z"]'}


def test_everything_that_is_wrong_is_said_at_once() -> None:
    request = raw_request("FP32", [2], b"1")
    request.parameters["priority"].string_param = "high"
    request.parameters["timeout"].int64_param = -1
    request.outputs.add(name="y").parameters["classification"].int64_param = 3
    request.outputs.add(name="y")

    assert problems(request).keys() == {
        'parameters["priority"]',
        'parameters["timeout"]',
        'outputs["y"]',
        "raw_input_contents[0]",
    }


@pytest.mark.parametrize(("level", "priority"), [(0, 0), (1, 100), (2, 99), (101, 0), (102, -1), (201, -100)])
def test_priorities_count_downwards_from_one(level: int, priority: int) -> None:
    request = request_with({"x": X})
    request.parameters["priority"].uint64_param = level

    assert question_from_request(request).priority == priority


@pytest.mark.parametrize("level", [-1, 202, 2**62])
def test_a_priority_that_there_is_not_is_refused(level: int) -> None:
    request = request_with({"x": X})
    request.parameters["priority"].int64_param = level

    assert problems(request).keys() == {'parameters["priority"]'}


@pytest.mark.parametrize(("microseconds", "seconds"), [(0, None), (250_000, 0.25)])
def test_a_timeout_is_in_microseconds_and_zero_is_none(microseconds: int, seconds: float | None) -> None:
    request = request_with({"x": X})
    request.parameters["timeout"].int64_param = microseconds

    assert question_from_request(request).timeout_seconds == seconds


def test_sequences_are_refused_and_the_sign_of_none_is_not() -> None:
    request = request_with({"x": X})
    request.parameters["sequence_id"].int64_param = 0
    request.parameters["anything"].string_param = "else"
    assert question_from_request(request).inputs["x"].shape == (1, 2)

    request.parameters["sequence_id"].string_param = "s1"
    with pytest.raises(InvalidSpec, match="no sequences"):
        question_from_request(request)


def test_outputs_are_kept_in_the_order_in_which_they_were_asked_for() -> None:
    request = request_with({"x": X}, outputs=[{"name": "b"}, {"name": "a"}])
    request.outputs[0].parameters["binary_data"].bool_param = True

    assert question_from_request(request).output_names == ("b", "a")


@pytest.mark.parametrize(
    ("model", "version", "name"),
    [
        ("digits", "", ModelName("digits")),
        ("digits", "3", ModelName("digits", 3)),
        ("digits@champion", "", ModelName("digits", alias="champion")),
    ],
)
def test_names_are_those_of_the_house_without_their_folder(model: str, version: str, name: ModelName) -> None:
    assert name_of(model, version) == name


@pytest.mark.parametrize(
    ("model", "version", "field"),
    [
        ("", "", "model_name"),
        ("My_Model", "", "model_name"),
        ("digits/versions/3", "", "model_name"),
        ("../digits", "", "model_name"),
        ("digits", "latest", "model_version"),
        ("digits", "0", "model_version"),
        ("digits", "-1", "model_version"),
        ("digits", "3\n", "model_version"),
        ("digits@champion", "3", "model_version"),
    ],
)
def test_names_of_another_form_are_refused(model: str, version: str, field: str) -> None:
    with pytest.raises((InvalidName, InvalidSpec)) as caught:
        name_of(model, version)

    assert caught.value.violations[0].field == field


def test_a_tensor_that_does_not_fit_blames_the_model_it_was_meant_for() -> None:
    with pytest.raises(InvalidTensor) as caught:
        question_from_request(raw_request("FP32", [2], b"1"))

    assert caught.value.metadata["model"] == "m"


def test_more_tensors_than_any_model_has_are_refused_at_a_glance() -> None:
    request = pb.ModelInferRequest(model_name="m")
    request.MergeFromString(b"\x2a\0" * 2_000_000)  # so many empty inputs
    assert len(request.inputs) == 2_000_000
    began_at = time.thread_time()

    assert not is_heavy_request(request)
    assert problems(request).keys() == {"inputs"}

    looked_at = time.thread_time()
    assert not any(tensor.name for tensor in request.inputs)  # what it takes to look at each of them
    assert looked_at - began_at < (time.thread_time() - looked_at) / 2


def test_a_shape_of_a_million_axes_is_refused_unread() -> None:
    request = raw_request("FP32", [1] * 1_000_000, b"1234")

    assert "has 1000000 axes" in problems(request)['inputs["x"].shape']


def test_only_what_is_read_one_by_one_is_heavy() -> None:
    zeros = np.zeros(40_000, "<f4")
    heavy: list[Callable[[], pb.ModelInferRequest]] = [
        lambda: request_with({"x": zeros}, is_raw=False),
        lambda: request_with({"x": np.array(["a"] * 40_000, dtype=object)}),
    ]

    assert not is_heavy_request(request_with({"x": zeros}))
    assert all(is_heavy_request(make()) for make in heavy)


def test_the_reason_of_a_refusal_can_be_read_by_programs() -> None:
    answer = refusal_of(status_of(Draining()), "r1")

    assert answer.error_message == "the server is shutting down"
    assert answer.infer_response.id == "r1"
    assert answer.infer_response.parameters["headrace_code"].string_param == "UNAVAILABLE"
    assert answer.infer_response.parameters["headrace_reason"].string_param == "SERVER_DRAINING"


def test_a_refusal_without_words_still_says_something() -> None:
    status = status_of(ModelFailed("models/m", "p"))
    status.message = ""
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)

    assert refusal_of(status, "").error_message == "INTERNAL"


def test_an_answer_with_a_type_that_travels_raw_only_is_raw_as_a_whole() -> None:
    outputs: Tensors = {"a": X, "h": np.array([1.5], "<f2"), "t": np.array(["é"], dtype=object)}
    response = pb.ModelInferResponse()

    write_outputs(outputs, response, is_raw=must_be_raw(outputs))

    assert [output.datatype for output in response.outputs] == ["FP32", "FP16", "BYTES"]
    assert list(response.raw_output_contents) == [X.tobytes(), b"\x00\x3e", struct.pack("<I", 2) + b"\xc3\xa9"]
    assert not any(output.HasField("contents") for output in response.outputs)
