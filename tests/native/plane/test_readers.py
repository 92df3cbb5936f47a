"""The native readers beside protobuf's own: what they take they read alike, and what is wrong they leave alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from headrace.inference.v1 import inference_service_pb2 as predict_pb
from headrace.type.v1 import tensor_pb2
from headrace_server._native import plane_testing as native
from headrace_server.rpc.open_inference import grpc_predict_v2_pb2 as infer_pb
from headrace_server.tensors import DataType
from tests.native.plane.messages import (
    cut,
    in_order,
    infer_requests,
    joined,
    mutated,
    names,
    predict_requests,
    read_infer,
    read_predict,
)

LARGEST = 2**63 - 1


@given(predict_requests(), st.data())
def test_a_predict_request_is_read_as_protobuf_reads_it_wherever_it_is_cut(
    request: predict_pb.PredictRequest, data: st.DataObject
) -> None:
    content = request.SerializeToString()

    read = native.read_predict(data.draw(cut(content)))

    assert read is not None
    assert in_order(read) == in_order(read_predict(content))


@given(infer_requests(), st.data())
def test_an_infer_request_is_read_as_protobuf_reads_it_wherever_it_is_cut(
    request: infer_pb.ModelInferRequest, data: st.DataObject
) -> None:
    content = request.SerializeToString()

    read = native.read_infer(data.draw(cut(content)))

    assert read is not None
    assert in_order(read) == in_order(read_infer(content))


@settings(max_examples=400)
@given(mutated(predict_requests()), st.data())
def test_what_is_left_of_a_damaged_predict_request_is_read_alike_or_not_at_all(
    content: bytes, data: st.DataObject
) -> None:
    read = native.read_predict(data.draw(cut(content)))

    if read is not None and is_name(read):
        assert in_order(read) == in_order(read_predict(content))


@settings(max_examples=400)
@given(mutated(infer_requests()), st.data())
def test_what_is_left_of_a_damaged_infer_request_is_read_alike_or_not_at_all(
    content: bytes, data: st.DataObject
) -> None:
    read = native.read_infer(data.draw(cut(content)))

    if read is not None and is_name(read):
        assert in_order(read) == in_order(read_infer(content))


@given(st.binary(max_size=200), st.data())
def test_noise_is_read_alike_or_not_at_all(content: bytes, data: st.DataObject) -> None:
    pieces = data.draw(cut(content))

    for mine, theirs in ((native.read_predict, read_predict), (native.read_infer, read_infer)):
        read = mine(pieces)
        if read is not None and is_name(read):
            assert in_order(read) == in_order(theirs(content))


@given(predict_requests(), names, st.none() | st.integers(-(10**9), 10**9), st.data())
def test_a_request_of_a_stream_is_taken_out_whole(
    request: predict_pb.PredictRequest, request_id: str, nanos: int | None, data: st.DataObject
) -> None:
    message = predict_pb.PredictStreamRequest(id=request_id, request=request)
    if nanos is not None:
        message.timeout.FromNanoseconds(nanos)

    read = native.read_stream_request(data.draw(cut(message.SerializeToString())))

    assert read is not None
    assert read[0] == request_id
    assert predict_pb.PredictRequest.FromString(read[1]) == request
    assert read[2] == (None if nanos is None else pytest.approx(nanos / 1e9))


@given(names, names, st.data())
def test_a_question_after_a_model_is_read_as_protobuf_reads_it(name: str, version: str, data: st.DataObject) -> None:
    content = infer_pb.ModelReadyRequest(name=name, version=version).SerializeToString()

    assert native.read_model_question(data.draw(cut(content))) == (name, version)


def an_infer_request() -> infer_pb.ModelInferRequest:
    request = infer_pb.ModelInferRequest(model_name="digits")
    request.inputs.add(name="x", datatype="FP32", shape=[2])
    request.raw_input_contents.append(bytes(8))
    return request


def test_a_whole_infer_request_is_read() -> None:
    assert native.read_infer([an_infer_request().SerializeToString()]) is not None


@pytest.mark.parametrize(
    "shape",
    [[-1], [0], [3], [], [2, 2], [LARGEST, LARGEST], [LARGEST, 2], [2**32, 2**32], [-1, -2], [1] * 33, [2**62, 4]],
)
def test_a_shape_that_does_not_fit_the_bytes_is_left_alone(shape: list[int]) -> None:
    request = an_infer_request()
    request.inputs[0].shape[:] = shape

    assert native.read_infer([request.SerializeToString()]) is None


def test_of_two_entries_of_a_map_the_last_counts() -> None:
    def entry(value: float) -> bytes:
        request = predict_pb.PredictRequest()
        request.inputs["x"].CopyFrom(
            tensor_pb2.Tensor(data_type=tensor_pb2.DATA_TYPE_FP64, floats=tensor_pb2.FloatValues(values=[value]))
        )
        return request.SerializeToString()

    content = predict_pb.PredictRequest(model="models/a").SerializeToString() + entry(1) + entry(2)

    read = native.read_predict([content])

    assert read is not None
    assert read == read_predict(content)
    assert read["inputs"] == [("x", "FP64", [], np.float64(2).tobytes())]


VALUES_THAT_DO_NOT_FIT = [
    ("FP32", {"floats": {"values": [1e39]}}),
    ("FP32", {"floats": {"values": []}}),
    ("FP32", {"floats": {"values": [1, 2]}}),
    ("FP32", {"ints": {"values": [1]}}),
    ("FP32", {"strings": {"values": ["1"]}}),
    ("INT8", {"ints": {"values": [128]}}),
    ("INT8", {"ints": {"values": [-129]}}),
    ("UINT32", {"ints": {"values": [1 << 32]}}),
    ("UINT64", {"ints": {"values": [-1]}}),
    ("INT64", {"floats": {"values": [1]}}),
    ("BOOL", {"ints": {"values": [2]}}),
    ("FP16", {"floats": {"values": [65520]}}),
    ("FP16", {"floats": {"values": [-1e300]}}),
    ("FP16", {"ints": {"values": [1]}}),
    ("BF16", {"floats": {"values": [3.4e38]}}),
    ("BF16", {"floats": {"values": [1, 2]}}),
    ("STRING", {"strings": {"values": []}}),
    ("STRING", {"strings": {"values": ["a", "b"]}}),
    ("STRING", {"ints": {"values": [1]}}),
    ("STRING", {"data": b"a"}),
]


@pytest.mark.parametrize(("data_type", "content"), VALUES_THAT_DO_NOT_FIT)
def test_readable_values_that_do_not_fit_are_left_alone(data_type: str, content: dict[str, Any]) -> None:
    request = predict_pb.PredictRequest(model="models/a")
    number = tensor_pb2.DataType.Value(f"DATA_TYPE_{data_type}")
    request.inputs["x"].CopyFrom(tensor_pb2.Tensor(data_type=number, **content))

    assert native.read_predict([request.SerializeToString()]) is None
    assert read_predict(request.SerializeToString()) is None


DOUBLES = st.floats(width=64) | st.sampled_from(
    [
        *(sign * (base + step) for sign in (1, -1) for step in (-1e-9, 0, 1e-9) for base in
          (65503.9, 65519.999, 2.0**-14, 2.0**-24, 2.0**-25, 1.5 * 2.0**-24, 1 + 2.0**-11, 1 + 3 * 2.0**-11, 2049.0)),
        *(1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-8 + 2.0**-40, 1 + 2.0**-24, 3.3895e38, 1e-40, -0.0),
        *(float("inf"), -float("inf"), float("nan"), -float("nan")),
    ]
)  # fmt: skip


@settings(max_examples=500)
@given(st.sampled_from([DataType.FP16, DataType.BF16]), st.lists(DOUBLES, min_size=1, max_size=20))
def test_readable_values_become_narrow_floats_bit_by_bit_as_numpy_makes_them(
    data_type: DataType, values: list[float]
) -> None:
    request = predict_pb.PredictRequest(model="models/a")
    number = tensor_pb2.DataType.Value(f"DATA_TYPE_{data_type}")
    floats = tensor_pb2.FloatValues(values=values)
    request.inputs["x"].CopyFrom(tensor_pb2.Tensor(data_type=number, shape=[len(values)], floats=floats))
    content = request.SerializeToString()

    assert native.read_predict([content]) == read_predict(content)


def test_every_number_of_16_bits_is_read_as_itself() -> None:
    for data_type in (DataType.FP16, DataType.BF16):
        numbers = np.arange(1 << 16, dtype=np.uint16).view(data_type.dtype)
        request = predict_pb.PredictRequest(model="models/a")
        tensor = request.inputs["x"]
        tensor.data_type = tensor_pb2.DataType.Value(f"DATA_TYPE_{data_type}")
        tensor.shape.append(numbers.size)
        with np.errstate(invalid="ignore"):  # some NaN are such that signal
            tensor.floats.values.extend(numbers.astype(np.float64).tolist())
        content = request.SerializeToString()

        assert native.read_predict([content]) == read_predict(content)


@pytest.mark.parametrize("data_type", ["FP8_E4M3", "FP8_E5M2"])
def test_readable_values_of_floats_of_8_bits_are_left_to_the_complete_server(data_type: str) -> None:
    request = predict_pb.PredictRequest(model="models/a")
    number = tensor_pb2.DataType.Value(f"DATA_TYPE_{data_type}")
    request.inputs["x"].CopyFrom(tensor_pb2.Tensor(data_type=number, floats=tensor_pb2.FloatValues(values=[0.1])))

    assert native.read_predict([request.SerializeToString()]) is None
    assert read_predict(request.SerializeToString()) is not None


def test_a_raw_list_that_is_too_short_or_too_long_is_left_alone() -> None:
    short, long = an_infer_request(), an_infer_request()
    short.inputs.add(name="y", datatype="FP32", shape=[2])
    long.raw_input_contents.append(bytes(8))

    assert native.read_infer([short.SerializeToString()]) is None
    assert native.read_infer([long.SerializeToString()]) is None


def a_text_request(shape: list[int], raw: bytes | None = None, texts: Sequence[bytes] = ()) -> bytes:
    request = infer_pb.ModelInferRequest(model_name="digits")
    tensor = request.inputs.add(name="x", datatype="BYTES", shape=shape)
    tensor.contents.bytes_contents.extend(texts)
    if raw is not None:
        request.raw_input_contents.append(raw)
    return request.SerializeToString()


def test_texts_are_read_raw_and_typed() -> None:
    texts = ["red", "", "gr\u00fcn"]
    contents = [text.encode() for text in texts]

    for content in (a_text_request([3], joined(contents)), a_text_request([3], texts=contents)):
        read = native.read_infer([content])
        assert read is not None
        assert read == read_infer(content)
        assert read["inputs"] == [("x", "STRING", [3], texts)]


@pytest.mark.parametrize(
    "content",
    [
        a_text_request([1], joined([b"a", b"b"])),
        a_text_request([2], joined([b"a"])),
        a_text_request([1], b"\5\0\0\0four"),
        a_text_request([1], b"\0\0\0"),
        a_text_request([1], joined([b"\xff"])),
        a_text_request([1], joined([b"a"]), [b"a"]),
        a_text_request([2], texts=[b"a"]),
        a_text_request([1], texts=[b"a", b"b"]),
        a_text_request([1], texts=[b"\xed\xa0\x80"]),
        a_text_request([-1], texts=[b"a"]),
        a_text_request([1], b"\xff\xff\xff\xff"),
    ],
)
def test_texts_that_do_not_fit_are_left_alone(content: bytes) -> None:
    assert native.read_infer([content]) is None
    assert read_infer(content) is None


def test_many_texts_are_left_to_the_complete_server() -> None:
    for count, is_read in ((16_384, True), (16_385, False)):
        assert (native.read_infer([a_text_request([count], bytes(4 * count))]) is not None) == is_read


def test_raw_beside_typed_is_left_alone() -> None:
    request = an_infer_request()
    request.inputs[0].contents.fp32_contents.extend([1, 2])

    assert native.read_infer([request.SerializeToString()]) is None


@pytest.mark.parametrize(
    ("field", "values"),
    [("int_contents", [1, 2]), ("fp64_contents", [1, 2]), ("fp32_contents", [1]), ("fp32_contents", [1, 2, 3])],
)
def test_values_in_another_field_or_in_another_number_are_left_alone(field: str, values: list[float]) -> None:
    request = an_infer_request()
    del request.raw_input_contents[:]
    getattr(request.inputs[0].contents, field).extend(values)

    assert native.read_infer([request.SerializeToString()]) is None


@pytest.mark.parametrize(("datatype", "value"), [("INT8", 128), ("INT8", -129), ("UINT8", 256), ("INT16", 1 << 15)])
def test_values_out_of_range_are_left_alone(datatype: str, value: int) -> None:
    request = infer_pb.ModelInferRequest(model_name="digits")
    tensor = request.inputs.add(name="x", datatype=datatype, shape=[1])
    field = tensor.contents.uint_contents if datatype.startswith("U") else tensor.contents.int_contents
    field.append(value)

    assert native.read_infer([request.SerializeToString()]) is None


@pytest.mark.parametrize("byte", [2, 0x80, 0xFF])
def test_a_flag_that_is_neither_0_nor_1_is_left_alone(byte: int) -> None:
    request = an_infer_request()
    request.inputs[0].datatype = "BOOL"
    request.raw_input_contents[0] = bytes([1, byte])

    assert native.read_infer([request.SerializeToString()]) is None


@pytest.mark.parametrize(("key", "value"), [("priority", -1), ("priority", 202), ("timeout", -1), ("sequence_id", 7)])
def test_parameters_that_are_refused_are_left_alone(key: str, value: int) -> None:
    request = an_infer_request()
    request.parameters[key].int64_param = value

    assert native.read_infer([request.SerializeToString()]) is None


def test_a_name_that_is_not_text_is_left_alone() -> None:
    request = an_infer_request().SerializeToString()

    assert native.read_infer([request.replace(b"digits", b"dig\xc0\xafs")]) is None
    assert native.read_infer([request.replace(b"digits", b"di\xed\xa0\x80s")]) is None


def test_many_inputs_are_left_alone_before_they_cost_anything() -> None:
    request = infer_pb.ModelInferRequest(model_name="digits")
    for index in range(100_000):
        request.inputs.add(name=str(index), datatype="FP32", shape=[1])

    assert native.read_infer([request.SerializeToString()]) is None


def test_messages_that_nest_without_end_are_left_alone() -> None:
    content = b""
    for _ in range(5_000):
        content = b"\x2a" + varint(len(content)) + content

    assert native.read_infer([content]) is None
    assert native.read_predict([content]) is None


def varint(value: int) -> bytes:
    content = bytearray()
    while value >= 0x80:
        content.append(value & 0x7F | 0x80)
        value >>= 7
    content.append(value)
    return bytes(content)


def is_name(read: dict[str, object]) -> bool:
    """Names are only compared with those that are known: whether one could be is for the complete server to say."""
    return read["model"] in ("digits", "digits@champion", "a", "x-1") and read["version"] in (
        "",
        "1",
        "27",
        "999999999",
    )
