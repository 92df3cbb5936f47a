"""Requests for predictions as hypothesis makes them, and what the complete server reads in them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError, Message
from hypothesis import strategies as st

from headrace.inference.v1 import inference_service_pb2 as predict_pb
from headrace.type.v1 import tensor_pb2
from headrace_server.errors import HeadraceError
from headrace_server.rpc.open_inference import grpc_predict_v2_pb2 as infer_pb
from headrace_server.rpc.wire.inference import question_from_proto
from headrace_server.rpc.wire.open_inference import question_from_request
from headrace_server.rpc.wire.open_inference_tensors import datatype_of
from headrace_server.tensors import Array, DataType, Tensors

_Format = predict_pb.PredictRequest.ContentFormat

NUMBERS = [data_type for data_type in DataType if data_type is not DataType.STRING]
TYPED = {
    DataType.BOOL: "bool_contents",
    DataType.INT8: "int_contents",
    DataType.INT16: "int_contents",
    DataType.INT32: "int_contents",
    DataType.INT64: "int64_contents",
    DataType.UINT8: "uint_contents",
    DataType.UINT16: "uint_contents",
    DataType.UINT32: "uint_contents",
    DataType.UINT64: "uint64_contents",
    DataType.FP32: "fp32_contents",
    DataType.FP64: "fp64_contents",
}

READABLE = [*TYPED, DataType.FP16, DataType.BF16]
"""The types whose values the native reader takes, too; those of other types are left to the complete server."""

texts = st.text(st.characters(codec="utf-8"), max_size=8)
names = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=0, max_size=8)
shapes = st.lists(st.integers(1, 4), max_size=4)
models = st.sampled_from(["digits", "digits@champion", "a", "x-1"])
versions = st.sampled_from(["", "1", "27", "999999999"])


@st.composite
def arrays(draw: st.DrawFn, types: Sequence[DataType] = NUMBERS) -> Array:
    """An array of numbers, of any bits where any bits are numbers."""
    data_type = draw(st.sampled_from(types))
    shape = draw(shapes)
    count = int(np.prod(shape, dtype=np.int64))
    if data_type is DataType.STRING:
        array = np.empty(count, dtype=object)
        array[:] = draw(st.lists(texts, min_size=count, max_size=count))
        return array.reshape(shape)
    if data_type is DataType.BOOL:
        flags = draw(st.lists(st.booleans(), min_size=count, max_size=count))
        return np.array(flags, dtype=np.bool_).reshape(shape)
    size = count * data_type.dtype.itemsize
    return np.frombuffer(draw(st.binary(min_size=size, max_size=size)), dtype=data_type.dtype).reshape(shape)


@st.composite
def predict_requests(draw: st.DrawFn) -> predict_pb.PredictRequest:
    """One that the data plane answers, if the model is there and takes it."""
    version = draw(versions)
    model = draw(models)
    request = predict_pb.PredictRequest(
        model=f"models/{model.partition('@')[0]}/versions/{version}" if version else f"models/{model}",
        output_names=draw(st.lists(names, max_size=3)),
        content_format=draw(st.sampled_from(_Format.values())),
        priority=draw(st.integers(-100, 100)),
    )
    for name, array in draw(st.dictionaries(names, arrays([*DataType]), max_size=3)).items():
        tensor = request.inputs[name]
        tensor.data_type = tensor_pb2.DataType.Value(f"DATA_TYPE_{DataType.of(array.dtype)}")
        tensor.shape.extend(array.shape)
        if array.dtype == object:
            tensor.strings.values.extend(array.ravel().tolist())
            tensor.strings.SetInParent()
        elif DataType.of(array.dtype) in READABLE and draw(st.booleans()) and fits_values(array):
            if DataType.of(array.dtype).is_floating:
                tensor.floats.values.extend(array.ravel().tolist())
            else:
                tensor.ints.values.extend(map(int, array.ravel().tolist()))
        else:
            tensor.data = array.tobytes()
    return request


def fits_values(array: Array) -> bool:
    """Whether the values of an array can travel as such: not integers above 63 bits."""
    return array.dtype != np.uint64 or int(array.max()) < 2**63


@st.composite
def infer_requests(draw: st.DrawFn) -> infer_pb.ModelInferRequest:
    """One that the data plane answers, if the model is there and takes it."""
    version = draw(versions)
    model = draw(models)
    request = infer_pb.ModelInferRequest(
        model_name=model.partition("@")[0] if version else model, model_version=version, id=draw(names)
    )
    is_raw = draw(st.booleans())
    types = [*DataType] if is_raw else [*TYPED, DataType.STRING]
    for name, array in draw(st.dictionaries(names, arrays(types), max_size=3)).items():
        data_type = DataType.of(array.dtype)
        tensor = request.inputs.add(name=name, datatype=datatype_of(data_type), shape=array.shape)
        tensor.parameters["binary_data_size"].int64_param = array.nbytes
        if data_type is DataType.STRING:
            contents = [text.encode() for text in array.ravel().tolist()]
            if is_raw:
                request.raw_input_contents.append(joined(contents))
            else:
                tensor.contents.bytes_contents.extend(contents)
        elif is_raw:
            request.raw_input_contents.append(array.tobytes())
        else:
            getattr(tensor.contents, TYPED[data_type]).extend(array.ravel().tolist())
    for name in draw(st.lists(names, max_size=3, unique=True)):
        request.outputs.add(name=name).parameters["binary_data"].bool_param = True
    if draw(st.booleans()):
        request.parameters["priority"].uint64_param = draw(st.integers(0, 201))
    if draw(st.booleans()):
        request.parameters["timeout"].int64_param = draw(st.integers(0, 10**12))
    return request


def joined(contents: Sequence[bytes]) -> bytes:
    """Elements of BYTES, as they travel raw."""
    return b"".join(len(content).to_bytes(4, "little") + content for content in contents)


@st.composite
def cut(draw: st.DrawFn, message: bytes) -> list[bytes]:
    """The same bytes in pieces, as a network may deliver them."""
    places = sorted(draw(st.lists(st.integers(0, len(message)), max_size=6)))
    return [message[start:end] for start, end in zip([0, *places], [*places, len(message)], strict=True)]


@st.composite
def mutated(draw: st.DrawFn, messages: st.SearchStrategy[Message]) -> bytes:
    """A message whose bytes were cut, changed, repeated or put in another order."""
    content = draw(messages).SerializeToString()
    for _ in range(draw(st.integers(1, 4))):
        start, end = sorted((draw(st.integers(0, len(content))), draw(st.integers(0, len(content)))))
        change = draw(st.sampled_from(["cut", "put", "repeat", "swap", "drop", "grow"]))
        if change == "cut":
            content = content[:start]
        elif change == "put":
            content = content[:start] + draw(st.binary(max_size=3)) + content[min(start + 3, len(content)) :]
        elif change == "repeat":
            content = content[:end] + content[start:]
        elif change == "swap":
            content = content[end:] + content[:end]
        elif change == "drop":
            content = content[:start] + content[end:]
        elif start < len(content):
            content = content[:start] + bytes([content[start] ^ (1 << draw(st.integers(0, 7)))]) + content[start + 1 :]
    return content


def read_predict(content: bytes) -> dict[str, Any] | None:
    """What the complete server reads, in the form of the native reader; None when it refuses."""
    try:
        request = predict_pb.PredictRequest.FromString(content)
        question = question_from_proto(request)
    except (DecodeError, HeadraceError):
        return None
    return {
        "model": question.name.model + (f"@{question.name.alias}" if question.name.alias else ""),
        "version": str(question.name.version or ""),
        "inputs": _inputs(question.inputs),
        "output_names": [*question.output_names],
        "priority": question.priority,
        "timeout_seconds": None,
        "id": "",
        "is_raw": not question.as_values,
    }


def read_infer(content: bytes) -> dict[str, Any] | None:
    """What the complete server reads, in the form of the native reader; None when it refuses."""
    try:
        request = infer_pb.ModelInferRequest.FromString(content)
        question = question_from_request(request)
    except (DecodeError, HeadraceError):
        return None
    return {
        "model": question.name.model + (f"@{question.name.alias}" if question.name.alias else ""),
        "version": str(question.name.version or ""),
        "inputs": _inputs(question.inputs),
        "output_names": [*question.output_names],
        "priority": question.priority,
        "timeout_seconds": question.timeout_seconds,
        "id": request.id,
        "is_raw": question.is_raw,
    }


def in_order(read: dict[str, Any] | None) -> dict[str, Any] | None:
    """The same with the inputs sorted: a map has no order."""
    return read if read is None else {**read, "inputs": sorted(read["inputs"])}


def _inputs(tensors: Tensors) -> list[tuple[str, str, list[int], bytes | list[str]]]:
    return [
        (
            *(name, str(DataType.of(array.dtype)), [*array.shape]),
            array.tobytes() if array.dtype != object else array.ravel().tolist(),
        )
        for name, array in tensors.items()
    ]
